"""`--mode=evaluate`: a checkpoint, or `--init_from`, on the evaluation split; trains nothing."""

from trainer.devices.strategy import is_chief
from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.report.screen import Reporter
from trainer.run.build import build_model, check_dataset, open_data
from trainer.run.evaluation import feed, make_program
from trainer.run.weights import find
from trainer.signals import stopping
from trainer.training.loop import evaluate


def run(config: Config) -> int:
    """Evaluates and prints. Needs no `--group` and no `--train_for`, takes no lock, writes nothing.

    Raises:
      UserError: no such weights, or weights, model and data that do not go together.
    """
    if config.eval_split == "none":
        raise UserError("--eval_split=none: --mode=evaluate needs a split to evaluate on.")
    with stopping():  # there is nothing to save: a signal ends it at once
        config, weights, told = find(config)
        check_dataset(config)
        built = build_model(config)
        reporter = Reporter(None, 1, 1, quiet=not is_chief(built.strategy))
        dataset, metrics = open_data(config, built, frozenset())
        for sentence in (built.engine, *dataset.notes, *told):
            reporter.note(sentence)
        origin = weights.assign(config, built, reporter)
        dataset.prepare()
        dataset.size(config.eval_split, "--eval_split")
        program = make_program(config, built, metrics)
        examples = feed(config, built, dataset)
        assert examples is not None
        values = evaluate(program, program.evaluator(examples), examples)
        rows = [("weights", origin), ("data", f"{dataset.full_name} ({config.eval_split})"), *values.items()]
        reporter.table("Evaluation", ("what", "value"), rows)
    return 0
