"""`--mode=evaluate`: a checkpoint, or `--init_from`, on the evaluation split; trains nothing."""

from trainer import building, distribution, evaluation, saved
from trainer.config import Config
from trainer.errors import UserError
from trainer.loop import evaluate
from trainer.report import Reporter
from trainer.signals import stopping


def run(config: Config) -> int:
    """Evaluates and prints. Needs no `--group` and no `--train_for`, takes no lock, writes nothing.

    Raises:
      UserError: no such weights, or weights, model and data that do not go together.
    """
    if config.eval_split == "none":
        raise UserError("--eval_split=none: --mode=evaluate needs a split to evaluate on.")
    with stopping():  # there is nothing to save: a signal ends it at once
        config, weights, told = saved.find(config)
        building.check_dataset(config)
        built = building.build_model(config)
        reporter = Reporter(None, 1, 1, quiet=not distribution.is_chief(built.strategy))
        dataset, metrics = building.open_data(config, built, frozenset())
        for sentence in (built.engine, *dataset.notes, *told):
            reporter.note(sentence)
        origin = weights.assign(config, built, reporter)
        dataset.prepare()
        dataset.size(config.eval_split, "--eval_split")
        program = evaluation.program(config, built, metrics)
        examples = evaluation.feed(config, built, dataset)
        assert examples is not None
        values = evaluate(program, program.evaluator(examples), examples)
        rows = [("weights", origin), ("data", f"{dataset.full_name} ({config.eval_split})"), *values.items()]
        reporter.table("Evaluation", ("what", "value"), rows)
    return 0
