"""Tests of the contract kit and of the stand-in engine."""
