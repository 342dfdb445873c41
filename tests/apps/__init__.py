"""Tests of `torpor.apps`."""
