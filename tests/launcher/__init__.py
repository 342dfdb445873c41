"""Tests of what launchers of engines are made of."""
