"""Tests of `torpor.runtime`."""
