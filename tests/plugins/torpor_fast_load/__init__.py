"""Tests of the plugin FastLoad."""
