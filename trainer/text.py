"""Text for a person: control characters spelt out, numbers short, columns aligned."""

import math
import re
from collections.abc import Sequence
from typing import Any


def printable(text: str) -> str:
    """The text with control characters spelt out: a name in a file must not drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def shortened(text: str, most: int = 500) -> str:
    """The text with each run without a blank that is longer than `most` cut in its middle."""

    def cut(word: re.Match[str]) -> str:
        return f"{word[0][:200]}...({len(word[0]):,} characters)...{word[0][-100:]}"

    return re.sub(rf"\S{{{most + 1},}}", cut, text)


def cell(value: Any) -> str:
    """A value as a table shows it: floats with up to six digits."""
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < math.inf else f"{value:.6g}"
    return printable(str(value))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line per row, its cells padded to the width of their columns."""
    flat = [[text.replace("\n", " ") for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*flat, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in flat]
