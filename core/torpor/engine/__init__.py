"""A running engine: its handle, its process tree, what ends it, and its log."""
