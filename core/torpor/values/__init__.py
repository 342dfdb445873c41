"""Values that users give: types of fields, names of GPUs, numbers, addresses and files, each checked at once."""
