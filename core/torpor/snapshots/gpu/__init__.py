"""GPUs: the driver, and the checkpoint of what a process holds on them."""
