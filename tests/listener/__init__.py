"""Tests of plugins that listen."""
