"""Tests of `torpor.tasks`: what a deployment can serve."""
