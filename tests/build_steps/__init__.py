"""Tests of `torpor.build_steps`."""
