"""Tests of `torpor.engine`."""
