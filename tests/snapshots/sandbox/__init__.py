"""Tests of `torpor.snapshots.sandbox`."""
