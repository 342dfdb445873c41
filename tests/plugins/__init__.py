"""Tests of the bundled plugins, one folder per plugin."""
