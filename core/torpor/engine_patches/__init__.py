"""What the processes of any engine in Python need so that they can be captured and restored."""
