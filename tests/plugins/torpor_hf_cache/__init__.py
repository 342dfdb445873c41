"""Tests of the HF-cache plugin."""
