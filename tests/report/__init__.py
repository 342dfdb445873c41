"""Tests of recorded starts and of their page."""
