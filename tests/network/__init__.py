"""Tests of `torpor.network`."""
