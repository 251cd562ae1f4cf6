# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory of a control group, as the kernel counts it (cgroup-v2.rst, "memory.stat"; cgroup-v1/memory.rst).

Everybody may read that, while /proc tells the memory of a process only to its own user. It counts all processes of an
office and the files in its private file system, for these too are memory.
"""

# The directories below which control groups have their memory.stat, with the counters of what is no file on a disk: in
# version 2, and in version 1, which systemd also uses beside version 2.
_TREES = (("/sys/fs/cgroup", ("anon", "shmem")), ("/sys/fs/cgroup/memory", ("total_rss", "total_shmem")))


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
