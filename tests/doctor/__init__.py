"""Tests of `torpor.doctor`."""
