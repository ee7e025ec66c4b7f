"""`--mode=evaluate`: a checkpoint, or `--init_from`, on the evaluation split; trains nothing."""

import dataclasses

from trainer.devices.replicas import is_chief
from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.report.screen import Screen
from trainer.report.tables import tables
from trainer.run import weights
from trainer.run.assemble import evaluation, evaluation_program
from trainer.run.build import (
    build_model,
    check_dataset,
    check_model,
    check_outputs,
    check_room,
    evaluation_split,
    open_source,
)
from trainer.signals import stopping
from trainer.training.evaluation import evaluate, without_weight
from trainer.training.failures import explained


def run(config: Config) -> int:
    """Evaluates and prints. Needs no `--group` and no `--train_for`, takes no lock, writes nothing.

    Raises:
      UserError: no such weights, or weights, model and data that do not go together.
    """
    if config.eval_split == "none":
        raise UserError("--eval_split=none: --mode=evaluate needs a split to evaluate on.")
    with stopping():  # there is nothing to save: a signal ends it at once
        config, saved, notes = weights.find(config)
        check_dataset(config)
        built = build_model(config)
        screen = Screen(quiet=not is_chief(built.strategy))
        split = evaluation_split(config, built, open_source(config))
        assert split is not None
        built, means = check_model(config, built, split, {})
        split = dataclasses.replace(split, classes=built.classes)
        outputs = check_outputs(config, built, split, means)
        for sentence in (built.engine, *split.source.notes, *notes):
            screen.note(sentence)
        origin = saved.assign(config, built, screen)
        split.source.prepare()
        check_room(outputs, split, built)
        program = evaluation_program(config, built, means, outputs)
        examples = evaluation(config, built, split)
        with explained(program, "--mode=evaluate"):
            function = program.evaluator(examples, saved.trained)
            numbers, arrays, _, weightless = evaluate(program, function, examples)
        for name in weightless:
            screen.warn(without_weight(name))
        data = f"{split.source.full_name} ({config.eval_split})"
        screen.table("Evaluation", ("what", "value"), [("weights", origin), ("data", data), *numbers.items()])
        for title, columns, rows in tables(arrays):
            screen.table(title, columns, rows)
    return 0
