"""The charts of a report, drawn by matplotlib, which is loaded only when one is drawn.

A chart is drawn once and is an SVG for a page whose style sheet gives the colours, so that it can be
read in light and dark, or a PNG in the colours of the light page.
"""

import contextlib
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# By the name of its CSS variable, each colour in light and in dark.
COLOURS = {
    "fg": ("#24292f", "#d7dce2"),
    "grid": ("#dfe3e8", "#343b44"),
    "band": ("#eef1f5", "#1f252c"),
    "s0": ("#2563a8", "#7ab3ef"),
    "s1": ("#c2571a", "#f2a06b"),
    "s2": ("#2e8b57", "#74c99a"),
    "s3": ("#a23b72", "#e58bbd"),
    "s4": ("#7a6a00", "#d6c34a"),
    "s5": ("#14808f", "#6fd0e0"),
    "s6": ("#7b4fb5", "#bfa0ee"),
    "s7": ("#8c564b", "#caa297"),
}
_NAMES = list(COLOURS)
SERIES = [name for name in _NAMES if name[0] == "s"]
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # a name with a $ in it is a name
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.7,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@dataclass(frozen=True)
class Chart:
    """A chart to be drawn.

    Attributes:
      name: of its file.
      title: above it.
      draw: onto an `Axes`, in the colours that it is given by name.
      size: width and height, inches.
      margins: left, bottom, right, top, inches.
    """

    name: str
    title: str
    draw: Callable[[Any, Mapping[str, str]], None]
    size: tuple[float, float] = (4.4, 2.7)
    margins: tuple[float, float, float, float] = (0.6, 0.42, 0.12, 0.1)

    def figure(self, colours: Mapping[str, str], above: float = 0.0) -> Any:
        """The drawn `Figure`, with so many inches above it for a title.

        Not by pyplot, which looks for a screen and keeps every figure.
        """
        from matplotlib.figure import Figure

        (width, height), (left, bottom, right, top) = self.size, self.margins
        height, top = height + above, top + above
        figure = Figure(figsize=(width, height))
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
        # A layout engine would find the margins by drawing all twice.
        axes = figure.add_axes(box)
        axes.set_axisbelow(True)
        self.draw(axes, colours)
        return figure


def load() -> None:
    """Loads what drawing needs, ahead of it; where that is not there, drawing says so."""
    with contextlib.suppress(Exception):  # an installation that is broken may raise anything
        from matplotlib import figure, font_manager
        from matplotlib.backends import backend_agg, backend_svg

        del figure, backend_agg, backend_svg
        font_manager.findfont("DejaVu Sans")


def svgs(charts: Sequence[Chart]) -> dict[str, str]:
    """An `<svg>` element of each chart, by name, for a page that has the variables of `COLOURS`."""
    # Colours that nothing else has, to be found again in the text.
    marks = {name: f"#fe01{index:02x}" for index, name in enumerate(_NAMES)}
    with _style(marks):
        return {chart.name: _element(chart, marks) for chart in charts}


def pngs(charts: Sequence[Chart]) -> dict[str, bytes]:
    """A PNG of each chart with its title, by name, in the colours of the light page."""
    light = {name: colour for name, (colour, _) in COLOURS.items()}
    found = {}
    with _style(light):
        for chart in charts:
            file, figure = io.BytesIO(), chart.figure(light, above=0.25)
            figure.axes[0].set_title(chart.title, loc="left", fontsize=10)
            figure.savefig(file, format="png", dpi=160, facecolor="white")
            found[chart.name] = file.getvalue()
    return found


def _element(chart: Chart, marks: Mapping[str, str]) -> str:
    """The SVG of a chart: without a height, so that it is as wide as there is room, with ids of its own."""
    file = io.StringIO()
    chart.figure(marks).savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()[file.getvalue().index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"#fe01([0-9a-f]{2})", lambda m: f"var(--{_NAMES[int(m[1], 16)]})", text)
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', lambda m: f"{m[1]}{chart.name}-", text)
    text = re.sub(r'(<svg\b[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(chart.title)}"', 1)


def _style(colours: Mapping[str, str]) -> Any:
    """A context in which matplotlib draws as it is asked to here; its settings are afterwards as before."""
    import matplotlib

    of_text = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return matplotlib.rc_context(
        {**_STYLE, "grid.color": colours["grid"], **dict.fromkeys(of_text, colours["fg"])}
    )
