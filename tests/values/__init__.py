"""Tests of `torpor.values`."""
