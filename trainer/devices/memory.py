"""How much memory there is for data: on the host, in a container, on GPUs."""

import os
import subprocess
from pathlib import Path


def room(devices: tuple[str, ...]) -> int:
    """Bytes that a resident split may take on each of `devices`."""
    host = _free() // 4
    if not any("GPU" in device for device in devices):
        return host // len(devices)
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return min(host, *(int(mib) << 18 for mib in answer.stdout.split()))  # quarters
    except (OSError, ValueError, subprocess.SubprocessError):
        return min(host, 2 << 30)  # no telling: what any GPU in use can spare


def host_room() -> int:
    """Bytes that a decoded split may take in the host's memory."""
    return _free() // 2


def _free() -> int:
    """Bytes that are free on the host, or in the container."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = [pages // 2]  # what is free is told by Linux only
    if (meminfo := Path("/proc/meminfo")).exists():
        lines = meminfo.read_text().splitlines()
        free = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
    group = Path("/sys/fs/cgroup/memory.max")  # of a container
    if group.exists() and (limit := group.read_text().strip()).isdigit():
        free.append(int(limit) - int(group.with_name("memory.current").read_text()))
    return min(free, default=pages // 2)
