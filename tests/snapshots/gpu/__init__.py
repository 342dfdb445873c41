"""Tests of `torpor.snapshots.gpu`."""
