"""Tests of the SGLang plugin: its launcher, flags and routes, with the real SGLang if it is installed."""
