"""Tests of `torpor.plan`."""
