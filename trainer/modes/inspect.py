"""`--mode=inspect`: what is in a file of weights and, with a model, which rules would make it fit."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from trainer.errors import UserError, listing
from trainer.flags.config import Config
from trainer.readers import Source, open_source
from trainer.report.screen import Reporter
from trainer.restore.match import match
from trainer.restore.propose import propose
from trainer.restore.rules import Rules, of


def run(config: Config) -> int:
    """Lists the weights of `--init_from`; with `--model`, checks the `--init_*` rules or proposes some.

    Raises:
      UserError: a source that cannot be read, or a model that cannot be built.
    """
    if not config.init_from:
        raise UserError("--mode=inspect: names no file. Add --init_from=PATH.")
    rules = of(config)
    source = open_source(config.init_from, config.init_weights)
    reporter = Reporter(None, 0, 1)
    title = f"{source.path}: {source.kind}"
    reporter.table(title, ("name", "shape", "dtype", "mean", "std", "min", "max"), list(_rows(source)))
    total = sum(spec.bytes for spec in source.specs.values())
    reporter.note(f"{len(source.specs)} weights, {total:,} bytes.")
    if source.ignored:
        reporter.note(f"Never taken (optimizer state, counters, random state): {listing(source.ignored)}.")
    if config.model:
        _fit(config, source, rules, reporter)
    reporter.close()
    return 0


def _rows(source: Source) -> Iterator[tuple[Any, ...]]:
    for name, spec in source.specs.items():
        array = source.read(name)
        shape = "x".join(map(str, spec.shape)) or "scalar"
        yield (name, shape, spec.dtype, *_statistics(array))


def _statistics(array: np.ndarray) -> tuple[Any, ...]:
    """Mean, standard deviation, least and greatest value, in float64."""
    if not array.size:
        return ("-",) * 4
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    if wide.dtype.kind == "c":
        wide = np.abs(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        return tuple(float(value) for value in (wide.mean(), wide.std(), wide.min(), wide.max()))


def _fit(config: Config, source: Source, rules: Rules, reporter: Reporter) -> None:
    # Only here: without a model no device is touched.
    from trainer.run.build import build_model

    built = build_model(config)
    variables = built.variables
    matched = match(variables, source, rules, built.model)
    if not matched.problems:
        reporter.note(
            f"It fits --model={config.model} under the --init_* rules as they are given: "
            f"{len(matched.starts())} of {len(variables)} variables are restored."
        )
        return
    proposal = propose(variables, source)
    reporter.note(
        f"It does not fit --model={config.model} as it is. PROPOSED, by names, shapes and order alone (read "
        "them before you believe them); for a flagfile:"
    )
    reporter.note("\n".join(proposal.lines))
    if proposal.problems:
        reporter.warn("These lines leave open:\n" + "\n".join(proposal.problems))
    else:
        reporter.note("Checked: with these lines, and no other --init_* rules, it fits.")
