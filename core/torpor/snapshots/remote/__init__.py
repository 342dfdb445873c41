"""Snapshots in a store that several machines reach: pushed in chunks, pulled with every check.

push         cuts a snapshot into chunks, sends those that the store lacks, and writes the manifest last
opening      reads a manifest of the store: who signed it, what is in the snapshot; fetches no chunk
pull         fetches the chunks of an opened snapshot, checks each, and puts the folder in its place
listing      which snapshots a store holds

values       what the others hand to each other
location     a URL: the store, and the name of a snapshot in it
store        the store's files, over fsspec: attempts, deadlines, complete writes
"""
