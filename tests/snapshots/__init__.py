"""Tests of `torpor.snapshots`."""
