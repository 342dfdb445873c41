"""Tests of the DeepGEMM plugin."""
