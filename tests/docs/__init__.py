"""Runs the examples of the README and of docs/, and checks their statements against the code."""
