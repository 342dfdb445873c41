"""What is known to fail: with an app, and on this machine."""
