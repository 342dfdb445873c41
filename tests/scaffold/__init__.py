"""Tests of new plugin projects."""
