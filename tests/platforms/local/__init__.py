"""Tests of `torpor.platforms.local`."""
