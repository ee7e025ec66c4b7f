"""`environment.json`: what runs on what. Describes; nothing is compared with it."""

import datetime
import os
import platform
from importlib.metadata import version
from typing import Any

import tensorflow as tf

from trainer.run.assemble import Assembled


def environment(assembled: Assembled) -> dict[str, Any]:
    """What the run, its data, its libraries and its machine are, for a person to read."""
    source = assembled.split.source
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    libraries = ("tensorflow", "keras", "numpy")
    found = {
        "model": assembled.config.model_name,
        "data": f"{source.full_name} ({assembled.config.train_split})",
        "data fingerprint": source.fingerprint(),
        "devices": assembled.built.engine,
        "GPUs": ", ".join(gpus) or None,
        "processor": _processor(),
        "memory, GiB": _memory(),
        "machine": f"{platform.node()}, {platform.platform()}",
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in libraries)]
        ),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _processor() -> str:
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            name = next((line.partition(":")[2].strip() for line in file if "model name" in line), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
