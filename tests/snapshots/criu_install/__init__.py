"""Tests of `torpor.snapshots.criu_install`."""
