"""One start of a deployment: what core does around the hooks."""
