"""What is checked before a capture: what a tree holds that no restore can bring back."""
