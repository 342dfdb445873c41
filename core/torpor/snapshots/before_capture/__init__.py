"""Checks before a capture: what a process tree holds that no snapshot can.

external_resources connections and open files outside of the sandbox
kernel_objects     objects of the kernel that CRIU does not restore (kernel_tables: where some are listed)
lasting_folders    folders that may be gone when the snapshot is restored
outside_files      files that the snapshot will depend on
"""
