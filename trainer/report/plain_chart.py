"""A curve in plain characters, for a terminal."""

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 64, 11


def plain_chart(x: Sequence[float], y: Sequence[float], marks: Mapping[str, float]) -> list[str]:
    """Lines of at most 80 characters: `y` over the logarithm of `x`, and below it where the marks are.

    Args:
      x: above 0, rising.
      y: of the same length; what is not finite is left out.
      marks: values of `x`, by a letter.
    """
    points = [(math.log10(a), b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if not points:
        return []
    left, right = points[0][0], points[-1][0]
    low, high = min(b for _, b in points), max(b for _, b in points)

    def column(value: float) -> int:
        return round((value - left) / ((right - left) or 1) * (WIDTH - 1))

    rows = [[" "] * WIDTH for _ in range(HEIGHT)]
    for a, b in points:
        rows[round((high - b) / ((high - low) or 1) * (HEIGHT - 1))][column(a)] = "*"
    labels = {0: f"{high:.3g}", HEIGHT - 1: f"{low:.3g}"}
    lines = [f"{labels.get(i, ''):>9} |{''.join(row)}".rstrip() for i, row in enumerate(rows)]
    below = ["-"] * WIDTH
    for letter, value in marks.items():
        place = column(math.log10(value))
        if 0 <= place < WIDTH:
            below[place] = letter
    ends = f"{10**left:.1g}", f"{10**right:.1g}"
    return [*lines, f"{'':9} +{''.join(below)}", f"{'':11}{ends[0]}{ends[1]:>{WIDTH - len(ends[0])}}"]
