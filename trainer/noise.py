"""TensorFlow's start-up: its lines that say nothing to a user, and an import that nothing here needs."""

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


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """While TensorFlow is imported: holds back what is written to file descriptor 2 and drops the noise.

    Everything else comes through when the context ends, an error's own lines too. The level of the
    later C++ log is warnings and worse unless `TF_CPP_MIN_LOG_LEVEL` says otherwise.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not _NOISE.match(line):
                    os.write(2, line)


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
