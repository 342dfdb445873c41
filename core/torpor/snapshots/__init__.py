"""Snapshots of a running engine on a plain Linux machine, made with CRIU (Checkpoint/Restore In Userspace).

criu_setup   CRIU 4.2 in a private prefix, for a machine whose own package is missing or too old
criu         finding CRIU, its options, dump and restore with deadlines, the reason of a failure out of its log
sandbox      one namespaced sandbox per replica: the engine's tree lives in it, CRIU runs in it
pid1         the first process of a sandbox
io_uring     io_uring denied to an engine, which CRIU cannot dump
probe        whether all of this works here, by a real small dump and restore
front        one public port before any number of replicas
"""
