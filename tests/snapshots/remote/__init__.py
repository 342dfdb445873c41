"""Tests of `torpor.snapshots.remote`."""
