"""Signals that end a run while a compiled loop runs: Python's handlers would wait for the call to return."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from trainer.errors import UserError

EXIT = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


class Stop:
    """What a signal does.

    Attributes:
      status: the exit status of the first signal that asked the run to stop; None until one did.
      request: called at the first signal, in a thread of its own. While it is None there is
        nothing to save, and a signal exits at once.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.request: Callable[[], object] | None = None
        # Under `nohup` a hang-up is to be ignored.
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self.numbers = [n for n in EXIT if not (ignored and n is signal.SIGHUP)]

    def catch(self) -> None:
        """Lets signals come here, even if TensorFlow has caught them since: with several workers it does."""
        for number in self.numbers:
            signal.signal(number, lambda *_: None)

    def watch(self, arriving: socket.socket) -> None:
        """Acts on each number of a signal that arrives, until the other end is closed."""
        while data := arriving.recv(16):
            for number in data:
                if number not in self.numbers:
                    continue
                status = EXIT[signal.Signals(number)]
                if self.status is not None or self.request is None:
                    os._exit(status)
                self.status = status
                self.request()


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """At the first SIGTERM, SIGINT or SIGHUP calls `request` of what it yields; a second exits at once.

    The interpreter writes each signal's number to a socket at once, from C, whatever the main thread is
    doing; the thread that reads it is what acts.

    Raises:
      UserError: not in the main thread, the only one in which Python catches signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UserError(
            "signals=True: SIGTERM and SIGINT can be caught in the main thread only, and this is "
            f"{threading.current_thread().name}. Leave it out, or run in the main thread."
        )
    stop = Stop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    watched = {number: signal.getsignal(number) for number in stop.numbers}
    stop.catch()
    previous = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=stop.watch, args=(ours,), name="signals", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in watched.items():
            signal.signal(number, handler or signal.SIG_DFL)
        theirs.close()
        thread.join()
        ours.close()
