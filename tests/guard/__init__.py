"""Tests of the guard, and what they share: a tiny engine, connections without a server, a real server with raw sockets."""
