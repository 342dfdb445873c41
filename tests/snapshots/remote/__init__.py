"""Tests of snapshots in a store."""
