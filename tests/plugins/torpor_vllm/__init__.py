"""Tests with the real vLLM, where it is set up: its parser, its routes, its server."""
