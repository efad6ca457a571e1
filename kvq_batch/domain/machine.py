"""What this machine offers to a process."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def num_cores(cgroup: Path = _CGROUP) -> int:
    """Return the cores that this process may use: by its CPU affinity and the CPU limit of its container.

    `cgroup` is where the control group of the container is mounted, version 2 or 1.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, math.ceil(_cpu_limit(cgroup))))


def _cpu_limit(cgroup: Path) -> float:
    """Return the CPU time per second that the control group may use; a large number without a limit."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return 2.0**31
