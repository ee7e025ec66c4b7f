"""Several runs side by side: their final numbers, and the flags that differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.report.history import History


@dataclass(frozen=True)
class Comparison:
    """Runs to compare, in the order given."""

    runs: Sequence[History]

    @property
    def names(self) -> list[str]:
        """What to call each run: the last part of its directory, with more of it where two are alike."""
        parts = [run.path.absolute().parts for run in self.runs]
        for length in range(1, max(map(len, parts), default=1) + 1):
            names = [str(Path(*part[-length:])) for part in parts]
            if len(set(names)) == len(names):
                return names
        return [str(run.path) for run in self.runs]

    @property
    def metrics(self) -> list[str]:
        """The metrics of any of the runs."""
        return list(dict.fromkeys(name for run in self.runs for name in run.metrics))

    def finals(self) -> tuple[list[str], list[list[object]]]:
        """Columns and a row per run: its last step and its final numbers; None where it has none."""
        shown = [m for m in self.metrics if any(m in run.final for run in self.runs)]
        rows: list[list[object]] = []
        for name, run in zip(self.names, self.runs, strict=True):
            final = run.final
            rows.append([name, f"{run.step} of {run.total or '?'}", *(final.get(m) for m in shown)])
        return ["run", "step", *shown], rows

    def differing(self) -> tuple[list[str], list[list[str]]]:
        """Columns and a row per flag that is not the same in all runs; `--workdir` always differs.

        Of a flag that repeats, the values that not all of them have.
        """
        flags = [_by_name(run.flags) for run in self.runs]
        names = dict.fromkeys(name for own in flags for name in own if name != "workdir")
        rows = []
        for name in names:
            given = [own.get(name, []) for own in flags]
            if any(values != given[0] for values in given):
                common = [value for value in given[0] if all(value in values for values in given)]
                own = [[value for value in values if value not in common] for values in given]
                if not any(own):  # the same in another order, which counts
                    own = given
                rows.append([f"--{name}", *(" | ".join(values) or "-" for values in own)])
        return ["flag", *self.names], rows


def _by_name(lines: Sequence[str]) -> dict[str, list[str]]:
    flags: dict[str, list[str]] = {}
    for line in lines:
        name, equals, value = line.strip().removeprefix("--").partition("=")
        if equals and line.startswith("--"):
            flags.setdefault(name, []).append(value)
    return flags
