"""Snapshots of a running engine on a plain Linux machine, made with CRIU (Checkpoint/Restore In Userspace).

criu_setup   CRIU 4.2 in a private prefix, for a machine whose own package is missing or too old
             (criu_lock: which packages; mirror, mirror_download: where from, and how they are checked; debs: what is unpacked)
criu         finding CRIU, its options, dump and restore with deadlines, the reason of a failure out of its log
             (trusted: whether a program of a prefix may be run)
sandbox      one namespaced sandbox per replica: the engine's tree lives in it, CRIU runs in it
             (pid1: its first process; first_process: how that is started; channel: the way to it; side_files: what lies in
             its private folders)
mapped_memory  memory that replicas map from the snapshot's files instead of copying it (common_pages: what forks have in
             common; criu_images: CRIU's image format)
engine_filter  system calls denied to an engine that is going to be dumped
probe        whether all of this works here, by a real small dump and restore
cuda         GPU state to host memory before a dump and back after a restore (cuda_run, cuda_calls: the driver's calls,
             made inside the sandbox; gpu: the GPUs of this machine; gpu_part: what a manifest says of them; gpu_needs:
             what stands in the way; host_memory: how much is available)
front        one public port before any number of replicas (listener: who is let in; forward: how bytes are carried)
store        a snapshot as a folder: capture, inspect, restore, remove
             (reading: files that may be damaged or hostile; folders: what of a folder is ours; known_snapshots: who needs
             kept weights; catalog: what is listed and pruned; failures:
             wakes that failed; foresight, lasting, targets: what a capture would refuse, told before it costs)
             (manifest: everything that has to fit; machine: this machine's part of it; checks: what is looked at
             before a capture; kernel_objects: what CRIU does not bring back; scheduling: what of it is set again; proof: one
             trial restore; outside: open files, model and code that it depends on; places: where snapshots lie by default)
fit          whether a snapshot fits here and now: every reason against it (differences: field by field)
replica      the restored engine, as core sees it (serving: several of them behind one port; replacement: what takes the
             place of one that ended; cold_start: one that starts cold where a restored one was to be)
light_httpx  httpx without its command line, for the restore's sake
backend      the protocol of the local platform's backends, and `none`, `standby`, `criu`
"""
