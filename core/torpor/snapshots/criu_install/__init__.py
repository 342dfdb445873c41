"""CRIU in a private folder: no root, nothing of the system touched."""
