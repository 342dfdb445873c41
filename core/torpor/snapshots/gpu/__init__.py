"""GPUs: the NVIDIA driver, and its checkpoint of what processes hold on them."""
