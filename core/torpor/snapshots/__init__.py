"""Snapshots of a running engine on a plain Linux machine, made with CRIU (Checkpoint/Restore In Userspace).

capture      takes a snapshot of an engine that sleeps
             (before_capture: what a tree holds that no restore can bring back; foresight, targets: what a capture would
             refuse, told before the start; trial: one restore of a new snapshot before it is put in its place)
fit          whether a snapshot fits here and now: every reason against it
             (facts: what is true here and now; differences: field by field)
known        which snapshots need which kept weights (catalog: what is listed and pruned)

store        a snapshot's folder, its manifest, and how both are read, damaged or not
sandbox      one sandbox per replica: the engine's process tree lives in it, CRIU runs in it
criu         the program CRIU, its runs with deadlines, and the images that it writes
             (probe: whether all of this works on this machine, by a real small dump and restore)
criu_install CRIU 4.2 in a private folder, for a machine whose own package is missing or too old
gpu          GPU state to host memory before a dump, and back after a restore
"""
