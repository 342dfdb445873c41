"""Tests of `torpor.platforms.ray`."""
