"""Runs the examples of the README and of docs/, and looks up in the code what they say about it."""
