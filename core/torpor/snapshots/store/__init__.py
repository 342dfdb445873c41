"""Snapshots on disk: a folder each, its manifest, and how both are read."""
