"""Tests of `torpor.engine_patches`."""
