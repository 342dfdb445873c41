"""Tests of Torpor; the folders mirror core/ and plugins/."""

from pathlib import Path

__all__ = ["ROOT"]

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""
