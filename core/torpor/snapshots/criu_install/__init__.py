"""Installs CRIU into a private folder, without root."""
