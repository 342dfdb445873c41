"""Tests of `torpor.serving`."""
