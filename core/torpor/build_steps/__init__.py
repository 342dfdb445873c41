"""What happens ahead of a start: build steps as commands, their outputs, and the file that runs them inside an image."""
