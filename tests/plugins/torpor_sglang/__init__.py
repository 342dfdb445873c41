"""Tests of the SGLang plugin: its launcher, flags and routes, on the real SGLang where one is set up."""
