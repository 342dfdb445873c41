"""CRIU: the program, its runs, and the images that it writes."""
