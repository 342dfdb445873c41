"""Values that people give: types of fields, names of GPUs, numbers, addresses and files, each checked where it is made."""
