"""Tests of `torpor.telemetry`."""
