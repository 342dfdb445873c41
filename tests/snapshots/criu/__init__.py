"""Tests of `torpor.snapshots.criu`."""
