"""The one place of the version: a literal, because containers hold no package metadata."""

__version__ = "0.2.0"
