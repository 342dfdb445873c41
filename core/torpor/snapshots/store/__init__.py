"""A snapshot on disk: its folder and its files.

folder    the folder is this user's own, and stays the same during a restore
found     what a folder is, if it is not a snapshot
placing   how a folder gets to its place, and how it is removed
hold      locks: who uses a snapshot, who writes it
manifest  what a snapshot is, and what must fit (gpu_state: its part about GPUs)
files     which of a snapshot's files are damaged
stored    the manifest of a snapshot that was checked, and the engine's identity
outside   the files outside of a snapshot that it depends on
here      what a pull notes: where its files lie on this machine
failures  whether a snapshot is marked bad
index     which snapshots this user has
reading   how all of these files are read, damaged or not (fields: their JSON)
paths     where things lie under the cache root
host_memory how much memory is left on this machine
"""
