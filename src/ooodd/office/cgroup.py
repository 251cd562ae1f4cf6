# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel knows of a control group: its memory and its processes (cgroup-v2.rst; cgroup-v1/memory.rst).

Everybody may read that, while /proc tells the memory of a process only to its own user. The memory is that of all
processes of an office and of the files in its private file system, for these too are memory.
"""

# The directories below which control groups have their memory.stat, with the counters of what is no file on a disk: in
# version 2, and in version 1, which systemd also uses beside version 2.
_TREES = (("/sys/fs/cgroup", ("anon", "shmem")), ("/sys/fs/cgroup/memory", ("total_rss", "total_shmem")))
# Those of version 2, alone and beside version 1, and systemd's own in version 1.
_PROCESS_TREES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")


def memory(group: str) -> int:
    """Return the bytes that a group ("/ooodd.slice/...") holds, or 0 if there is none or its memory is not counted."""
    for tree, names in _TREES:
        try:
            with open(f"{tree}{group}/memory.stat", encoding="ascii") as file:  # noqa: PTH123 - often called
                counters = dict(line.split() for line in file)
        except (OSError, ValueError):
            continue
        return sum(int(counters.get(name, 0)) for name in names)
    return 0


def processes(group: str) -> int:
    """Return how many processes a group has, or 0 if there is none."""
    for tree in _PROCESS_TREES:
        try:
            with open(f"{tree}{group}/cgroup.procs", encoding="ascii") as file:  # noqa: PTH123 - often called
                return sum(1 for _ in file)
        except OSError:
            continue
    return 0
