"""Tests of the vLLM plugin, with the real vLLM if it is installed: its parser, routes and server."""
