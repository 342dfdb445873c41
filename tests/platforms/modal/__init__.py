"""Tests of `torpor.platforms.modal`."""
