"""What fails inside a compiled function, in one message: the op's own sentence and the user's own line."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.errors import UserError
from trainer.model.graphs import is_foreign, is_own
from trainer.training.program import Program

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NODE = re.compile(r"(?:Detected at node |\{\{node )([^\s}]+)")
# Lines of TensorFlow's report that are no sentence of the op's.
_AROUND = re.compile(
    r"\s*$|Graph execution error|Detected at node|<stack traces|Traceback|The op is created at|Stack trace "
    r"for|\d+ (successful|derived|root) |File |\s*\[\[|\d+ root error"
)
_PLACE = re.compile(r"\s*\(\d+\)\s*[A-Z_]+:\s*")


@contextlib.contextmanager
def explained(program: Program, doing: str) -> Iterator[None]:
    """Turns what fails inside a compiled function into a message.

    Raises:
      UserError: an op failed.
    """
    try:
        yield
    except tf.errors.OpError as error:
        raise UserError(f"{doing} failed: {what_failed(error, program)} {remedy(error)}") from error


def what_failed(error: tf.errors.OpError, program: Program) -> str:
    """The op, the user's own line that made it, and its own sentence."""
    text = str(error.message)
    node = _NODE.search(text)
    op = f"the op {node[1].rpartition('/')[2]}" if node else f"an op ({type(error).__name__})"
    return f"{op}{_line(text, program)} says: {_sentence(text)}"


def remedy(error: tf.errors.OpError) -> str:
    """What to try."""
    text = str(error.message)
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return "Give a smaller --batch_size, and --accumulate to make up for it."
    if "XLA" in text or "tf2xla" in text:
        return "Leave out --jit_compile, or take the op out of the model."
    if "label value" in text:
        return "Give the model an output for every class, or mend the labels."
    return "Mend that line, or the data that it meets; the same command then goes on."


def _line(text: str, program: Program) -> str:
    """` at FILE:LINE` of the innermost frame below the program's own that is the user's, or empty."""
    maps: dict[tuple[str, int], Any] = {}
    for function in (program.network.own_loss, program.network.own_preprocess):
        origin = getattr(function, "ag_source_map", None) or {}
        maps |= {(at.filename, at.lineno): info.loc for at, info in origin.items()}
    found = ""
    for file, line in _FRAME.findall(text):
        file = file if Path(file).is_absolute() or not Path("/", file).exists() else f"/{file}"
        if origin := maps.get((file, int(line))):
            file, line = origin.filename, origin.lineno
        if is_own(file):
            found = ""  # above it stands whoever called the program
        elif not is_foreign(file):
            found = f" at {file}:{line}"
    return found


def _sentence(text: str) -> str:
    """What the op itself says, without TensorFlow's report around it."""
    sentences = []
    for line in text.splitlines():
        listed = _PLACE.match(line)  # one of several, where replicas failed together
        if not _AROUND.match(line) and (listed or not line[:1].isspace()):
            sentences.append(_PLACE.sub("", line).strip())
    return (" ".join(dict.fromkeys(sentences)) or " ".join(text.split()))[:600].rstrip(". ") + "."
