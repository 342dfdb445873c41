"""Tests of `torpor.engine_plugins`."""
