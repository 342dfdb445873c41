"""Tests of the metrics over HTTP."""
