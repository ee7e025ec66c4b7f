"""`--mode=inspect`: what is in a file of weights and, with a model, which rules would make it fit."""

from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoints import files
from trainer.errors import UserError, listing
from trainer.flags.config import Config
from trainer.readers import WeightsFile, open_source
from trainer.report.screen import Screen
from trainer.restore.decide import BY_POSITION
from trainer.restore.match import match
from trainer.restore.propose import Proposal, propose
from trainer.restore.rules import Rules, of
from trainer.restore.weights import COLUMNS, Inspection


def run(config: Config) -> int:
    """Lists the weights of `--init_from`; with `--model`, checks the `--init_*` rules or proposes some.

    Raises:
      UserError: a source that cannot be read, or a model that cannot be built.
    """
    if not config.init_from:
        raise UserError("--mode=inspect: names no file. Add --init_from=PATH.")
    rules = of(config)
    source = open_source(config.init_from, config.init_weights)
    screen = Screen()
    rows = [(r[0], "x".join(map(str, r[1])) or "scalar", *r[2:]) for r in Inspection(source).rows]
    screen.table(f"{source.path}: {source.kind}", COLUMNS, rows)
    total = sum(spec.bytes for spec in source.specs.values())
    screen.note(f"{len(source.specs)} weights, {total:,} bytes.")
    if source.ignored:
        screen.note(f"Never taken (optimizer state, counters, random state): {listing(source.ignored)}.")
    if source.torch and not config.init_layout:
        screen.note("Its names look like PyTorch's: to restore from it, say --init_layout=torch.")
    if source.positional:
        screen.note("It stores positions, not names: a folder's name is a class and a count.")
    if config.model:
        _fit(config, source, rules, screen)
    return 0


def _fit(config: Config, source: WeightsFile, rules: Rules, screen: Screen) -> None:
    # Only here: without a model no device is touched.
    from trainer.run.build import build_model

    built = build_model(config)
    variables = built.variables
    matched = match(variables, source, rules, built.model)
    if not matched.problems:
        screen.note(
            f"It fits --model={config.model_name} under the --init_* rules as they are given: "
            f"{len(matched.starts())} of {len(variables)} variables are restored"
            + (", by position, as Keras does." if BY_POSITION in {e.rule for e in matched.entries} else ".")
        )
        if matched.leftover:
            screen.note(f"Left over in the file, as Keras leaves it: {listing(matched.leftover)}.")
        _write(config, ())
        return
    proposal = propose(variables, source, config.init_layout, built.model)
    screen.note(
        f"It does not fit --model={config.model_name} as it is. PROPOSED, {proposal.how} (read the lines "
        "before you believe them); for a flagfile:"
    )
    screen.note("\n".join(proposal.lines))
    _trust(proposal, screen)
    _write(config, proposal.lines)


def _trust(proposal: Proposal, screen: Screen) -> None:
    """Says how sure the proposal is: only what names or shapes leave no choice in is called checked."""
    if proposal.problems:
        screen.warn("These lines leave open:\n" + "\n".join(proposal.problems))
    if proposal.ambiguous:
        screen.warn("AMBIGUOUS, layers of equal shapes could be exchanged:\n" + "\n".join(proposal.ambiguous))
    if proposal.proven:
        screen.note("Checked: with these lines alone it fits, and names or shapes leave no choice.")
    elif not proposal.problems:
        screen.note(
            "With these lines, and no other --init_* rules, it fits; whether in the right way is open."
        )


def _write(config: Config, lines: Sequence[str]) -> None:
    """Writes the proposal as a flagfile, where `--propose_out` names one; empty where no rule is needed."""
    if not config.propose_out:
        return
    try:
        files.replace(Path(config.propose_out).expanduser(), "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise UserError(
            f"--propose_out={config.propose_out}: cannot be written: {error.strerror}."
        ) from error
