"""What the README and the pages of docs/ show is run, and what they say of the code is looked up in it."""
