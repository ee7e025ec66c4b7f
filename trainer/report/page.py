"""`report.html`: a run, or several side by side, as one page that loads nothing and runs no script.

Everything that comes from a file is escaped. Colours are variables of the style sheet, light and dark.
"""

import html
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.report import charts
from trainer.report import images as pngs
from trainer.report.charts import Chart
from trainer.report.compare import Comparison
from trainer.report.document import document
from trainer.report.evaluated import Evaluated
from trainer.report.history import History
from trainer.report.pictures import of_run, of_runs
from trainer.text import cell

NAME = "report.html"  # in the working directory
LIMIT = 400  # rows of a table; a page is to stay small


def write(history: History, to: Path, png: bool = False) -> list[Path]:
    """Writes the page of one run; with `png` its charts as files beside it, too. Returns what was written.

    Raises:
      OSError: it cannot be written.
    """
    pictures = of_run(history)
    return _write(
        to, document(history.path.name, _run(history, charts.svgs(pictures))), pictures if png else ()
    )


def images(history: History) -> list[tuple[str, bytes, tuple[int, int]]]:
    """(name, PNG, (width, height)) for TensorBoard: the confusion matrix, the worst examples."""
    from PIL import Image  # comes with matplotlib

    kept = history.evaluated
    if kept is None:
        return []
    found = charts.pngs([chart for chart in of_run(history) if chart.name == "confusion"])
    if kept.images is not None:
        found["worst_classified"] = pngs.png(_side_by_side(kept.images))
    return [(name, png, Image.open(io.BytesIO(png)).size) for name, png in found.items()]


def _side_by_side(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """Images [K, h, w, c] as one of rows of `columns`, the worst first."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    filled = np.zeros((rows * columns, height, width, channels), np.uint8)
    filled[:count] = images
    grid = filled.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def write_comparison(comparison: Comparison, to: Path, png: bool = False) -> list[Path]:
    """The same of several runs."""
    pictures = of_runs(comparison)
    title = f"{len(comparison.runs)} runs compared"
    body = _comparison(comparison, charts.svgs(pictures))
    return _write(to, document(title, body), pictures if png else ())


def _write(to: Path, text: str, pictures: Sequence[Chart]) -> list[Path]:
    to.parent.mkdir(parents=True, exist_ok=True)
    files = {to: text.encode()}
    files |= {to.with_name(f"{to.stem}-{n}.png"): data for n, data in charts.pngs(pictures).items()}
    for path, data in files.items():
        aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        aside.write_bytes(data)
        aside.replace(path)
    return list(files)


def _run(history: History, drawn: Mapping[str, str]) -> str:
    pictures = {chart.name: chart for chart in of_run(history)}
    kept = history.evaluated
    main = [name for name in pictures if name not in ("confusion", "timeline")]
    parts = [
        f"<h1>{_text(history.path.name)}</h1>",
        _tiles(history),
        _section("Curves", _charts(main, pictures, drawn)),
        _section("Which group trained when", _charts(["timeline"], pictures, drawn) + _groups(history)),
    ]
    parts.append(_section("Images of the last evaluation", _returned(history)))
    if kept:
        shown = _evaluated(kept, pictures, drawn)
        parts.append(_section(f"The evaluation at step {kept.step:,}", shown, "evaluation"))
    parts += [_receipt(history), _plan(history), _environment(history), _repeat(history)]
    return "\n".join(filter(None, parts))


def _tiles(history: History) -> str:
    total = f" of {history.total:,}" if history.total else ""
    tiles = [("steps", f"{history.step:,}{total}")]
    of = "evaluation" if history.evaluations else "training"
    tiles += [(f"{name}, last {of}", cell(value)) for name, value in history.final.items()]
    speeds = [v for v in history.curve("examples_per_second")[1] if math.isfinite(v)]
    if speeds:
        tiles.append(("examples per second, median", f"{sorted(speeds)[len(speeds) // 2]:,.0f}"))
    inside = "".join(f"<div><b>{_text(value)}</b>{_text(name)}</div>" for name, value in tiles)
    return f'<div class="tiles">{inside}</div>'


def _charts(names: Iterable[str], pictures: Mapping[str, Chart], drawn: Mapping[str, str]) -> str:
    figures = [
        f"<figure><figcaption>{_text(pictures[name].title)}</figcaption>{drawn[name]}</figure>"
        for name in names
        if name in drawn
    ]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _groups(history: History) -> str:
    groups = history.plan.get("groups")
    rows = []
    for name, group in groups.items() if isinstance(groups, dict) else ():
        if isinstance(group, dict):
            until = history.total if group.get("stop") is None else group["stop"]
            own = group.get("variables")
            count = len(own) if isinstance(own, list) else 0
            rows.append(
                (name, group.get("optimizer"), group.get("schedule"), group.get("start"), until, count)
            )
    return _table(("group", "optimizer", "schedule", "from step", "until", "variables"), rows)


def _evaluated(kept: Evaluated, pictures: Mapping[str, Chart], drawn: Mapping[str, str]) -> str:
    table = _table(
        ("class", "examples", "precision", "recall", "F1"),
        [(name, n, *(_share(x) for x in rest)) for name, n, *rest in kept.per_class()],
    )
    parts = [f'<div class="charts">{_charts(["confusion"], pictures, drawn)}{table}</div>']
    if kept.images is not None:
        parts.append("<h3>The worst-classified examples</h3>")
        parts.append('<div class="images">')
        for image, (label, said, share, row) in zip(kept.images, kept.worst()[1], strict=True):
            text = f"{label}, taken for {said}; p({label}) {share}; row {row}"
            shown = f'<img alt="{_text(text)}" src="{pngs.source(pngs.png(image))}">'
            parts.append(f"<figure>{shown}<figcaption>{_text(text)}</figcaption></figure>")
        parts.append("</div>")
    return "".join(parts)


def _returned(history: History) -> str:
    """Images that the last evaluation returned."""
    figures = [
        f'<figure><img alt="{_text(name)}" src="{source}"><figcaption>{_text(name)}</figcaption></figure>'
        for name, source in history.images.items()
    ]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _receipt(history: History) -> str:
    receipt = history.receipt
    lines = receipt.get("variables")
    if not isinstance(lines, list) or not lines:
        return ""
    shown = ("name", "shape", "source", "rule", "adapt", "cast", "before", "after")
    rows = []
    for line in lines:
        if isinstance(line, dict):
            values = {**line, "source": line.get("source") or "left alone"}
            values |= {key: str(line.get(key, ""))[:8] for key in ("before", "after")}
            rows.append([values.get(key) if values.get(key) is not None else "" for key in shown])
    title = f"Restored: {receipt.get('restored')} variables from {receipt.get('source')}"
    note = f"<p>{_text(receipt.get('kind'))}; {_text(receipt.get('left_alone'))} left alone.</p>"
    return _folded(title, note + _table(shown, rows))


def _plan(history: History) -> str:
    plan = history.plan
    settings = [(k, v) for k, v in plan.items() if isinstance(v, str | int | float) or v is None]
    rows = [row for row in plan.get("rows") or [] if isinstance(row, dict)]
    shown = ("name", "shape", "parameters", "group", "optimizer", "from", "until", "weight_decay", "start")
    table = _table(shown, [[row.get(key, "") for key in shown] for row in rows])
    return _folded("The plan", _table(("setting", "value"), settings) + table) if plan else ""


def _environment(history: History) -> str:
    rows = list(history.environment.items())
    return _section("What ran on what", _table(("what", "value"), rows)) if rows else ""


def _repeat(history: History) -> str:
    if not history.flags:
        return ""
    flags = _text("\n".join(history.flags[:LIMIT]))
    where = history.path / "flags.txt"
    command = f"python run.py --flagfile={where} --workdir=NEW_DIRECTORY"
    return _section("How to repeat it", f"<pre>{_text(command)}</pre><pre>{flags}</pre>")


def _comparison(comparison: Comparison, drawn: Mapping[str, str]) -> str:
    pictures = {chart.name: chart for chart in of_runs(comparison)}
    columns, rows = comparison.finals()
    differ_columns, differ_rows = comparison.differing()
    keys = [
        f'<span class="key" style="border-color:var(--s{i % 8})"></span>{_text(name)}<br>'
        for i, name in enumerate(comparison.names)
    ]
    flags = _table(differ_columns, differ_rows) if differ_rows else "<p>None: all have the same flags.</p>"
    return "\n".join(
        [
            f"<h1>{len(comparison.runs)} runs compared</h1><p>{''.join(keys)}</p>",
            _section("Final numbers", _table(columns, rows)),
            _section("Flags that differ", flags),
            _section("Curves", _charts(pictures, pictures, drawn)),
        ]
    )


def _section(title: str, body: str, anchor: str = "") -> str:
    named = f' id="{anchor}"' if anchor else ""
    return f"<h2{named}>{_text(title)}</h2>\n{body}" if body else ""


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{body}</details>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; a cell that is a number, or a share, stands to the right."""
    if not rows:
        return ""
    numbers = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    tags = [' class="n"' if number else "" for number in numbers]
    head = "".join(f"<th{tag}>{_text(column)}</th>" for tag, column in zip(tags, columns, strict=True))
    lines = [f"<tr>{head}</tr>"]
    for row in rows[:LIMIT]:
        cells = (f"<td{tag}>{_text(value)}</td>" for tag, value in zip(tags, row, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    more = f"<p>and {len(rows) - LIMIT:,} more rows</p>" if len(rows) > LIMIT else ""
    kind = ' class="many"' if len(columns) > 2 else ""
    return f'<div class="wide"><table{kind}>{"".join(lines)}</table>{more}</div>'


def _share(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _text(value: Any) -> str:
    """Any value as text of the page."""
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        value = (
            "x".join(map(str, value))
            if all(isinstance(x, int) for x in value)
            else ", ".join(map(str, value))
        )
    return html.escape(cell(value))
