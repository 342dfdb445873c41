"""Tests of `torpor.snapshots.store`."""
