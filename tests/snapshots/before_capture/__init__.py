"""Tests of `torpor.snapshots.before_capture`."""
