"""Tests of `torpor serve`: configuration, conductor, control paths, and the whole of it with stand-ins."""
