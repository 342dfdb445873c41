"""Tests of `torpor.launcher`."""
