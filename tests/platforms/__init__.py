"""Tests of `torpor.platforms`."""
