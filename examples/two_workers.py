"""Starts the workers of a flagfile on this machine, on free ports, as a cluster's scheduler would on several.

    python examples/two_workers.py [--workers=2] [FLAG ...]

Without flags it runs examples/two_workers.flags; flags of run.py are handed on to every worker. SIGINT and
SIGTERM go to all. The exit status is that of the first worker that failed, else 0.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Starts all workers and waits for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    own, flags = parser.parse_known_args()
    flags = flags or ["--flagfile=examples/two_workers.flags"]
    command = [sys.executable, "run.py", *flags]
    addresses = [f"127.0.0.1:{port}" for port in free_ports(own.workers)]
    workers = []
    for index in range(own.workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        # Without GPUs: two workers on one machine would take the same ones.
        environment = {"TF_CONFIG": json.dumps(task), "CUDA_VISIBLE_DEVICES": "-1"}
        # In sessions of their own: a Ctrl-C reaches each once, by way of this process.
        started = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, start_new_session=True)
        workers.append(started)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: [w.send_signal(number) for w in workers])
    statuses = [worker.wait() for worker in workers]
    return next((status if status > 0 else 128 - status for status in statuses if status), 0)


def free_ports(count: int) -> list[int]:
    """Ports that are free now; the sockets stay open until all are found, so that no two are the same."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    sys.exit(main())
