"""SIGTERM and SIGINT while a compiled loop runs: Python's handlers would wait for the call to return."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

EXIT = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Stop:
    """Which signal asked the run to stop; `status` is None until one did."""

    def __init__(self) -> None:
        self.status: int | None = None


@contextlib.contextmanager
def stopping(request: Callable[[], None]) -> Iterator[Stop]:
    """Calls `request` from a thread of its own at the first SIGTERM or SIGINT; a second one exits at once.

    Must be entered in the main thread. The interpreter writes each signal's number to a socket at
    once, from C, whatever the main thread is doing; the thread that reads it is what acts.
    """
    stop = Stop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    watched = {s: signal.signal(s, lambda *_: None) for s in EXIT}
    previous = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while data := ours.recv(16):
            for number in data:
                if number not in EXIT:
                    continue
                if stop.status is not None:
                    os._exit(EXIT[signal.Signals(number)])
                stop.status = EXIT[signal.Signals(number)]
                request()

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in watched.items():
            signal.signal(number, handler)
        theirs.close()
        thread.join()
        ours.close()
