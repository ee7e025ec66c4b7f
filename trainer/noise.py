"""The standard streams: open, and without TensorFlow's start-up lines, which say nothing to a user."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Written by C++ before any log level is heeded; warnings and errors begin with W, E or F.
# CUDA error 303 is that of a machine with no driver: the run's first line says that there is no GPU.
_NOISE = re.compile(
    rb"I\d{4} |WARNING: All log messages before absl::InitializeLog|.*failed call to cuInit.*\(303\)"
)


def open_streams() -> None:
    """Opens nothing in the place of a standard stream that was closed before the program began (`2>&-`).

    Otherwise the next file that is opened, a checkpoint perhaps, would get the number of the stream, and
    whatever is printed.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one; for processes that are started, too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None or getattr(sys, name).closed:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for good)


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """While TensorFlow is imported: holds back what is written to file descriptor 2 and drops the noise.

    Everything else comes through when the context ends, an error's own lines too. The level of the
    later C++ log is warnings and worse unless `TF_CPP_MIN_LOG_LEVEL` says otherwise.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    try:
        held = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed below)
    except OSError:  # nowhere to hold anything back
        yield
        return
    with held:
        try:
            with _errors_to(held.fileno()):
                yield
        finally:
            held.seek(0)
            for line in held:
                if not _NOISE.match(line):
                    os.write(2, line)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drops what is written to file descriptor 2, by C++ too."""
    with open(os.devnull, "wb") as nowhere, _errors_to(nowhere.fileno()):
        yield


@contextlib.contextmanager
def _errors_to(descriptor: int) -> Iterator[None]:
    """What is written to file descriptor 2 goes to this one."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def no_matplotlib() -> Iterator[None]:
    """While Keras is imported: it would load `matplotlib.pyplot` for its galleries, a third of a second.

    For a process of this program's own; in it Keras's galleries say that matplotlib is not installed.
    """
    name = "matplotlib"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        yield
    finally:
        del sys.modules[name]
