"""`--mode=predict`: what a checkpoint's model says of examples, a row each, into a file; trains nothing."""

import sys

from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.report.screen import Screen
from trainer.run import rows, weights
from trainer.run.build import build_model, check_dataset
from trainer.run.predictions import Predictions, opened, recorded, split_of
from trainer.signals import stopping


def run(config: Config) -> int:
    """Writes the predictions aside, then renames. Needs no `--group`, takes no lock.

    Raises:
      UserError: no such weights, data that do not suit, or a file that cannot be written.
    """
    rows.check_target(config.predict_to)
    if config.strategy == "multi_worker":
        raise UserError("--strategy=multi_worker: predictions are made in one process. Give another.")
    given = config.given()
    screen = Screen(stream=sys.stderr) if config.predict_to == "-" else Screen()
    with stopping():  # there is nothing to save: a signal ends it at once
        config, saved, notes = weights.find(config)
        check_dataset(config)
        specs = recorded(saved.entry)
        built = build_model(config)
        source = opened(config, specs)
        named = "eval_split" in given or "dataset" not in given
        split = split_of(config, built, source, named)
        predictions = Predictions(config, built, split, specs)
        predictions.check()
        for sentence in (built.engine, *source.notes, *notes):
            screen.note(sentence)
        origin = saved.assign(config, built, screen)
        source.prepare()
        columns = _written(predictions, config.predict_to, screen)
    table = [("weights", origin), ("data", f"{source.full_name} ({split.name})"), *columns]
    screen.table("Predictions", ("what", "value"), table)
    return 0


def _written(predictions: Predictions, target: str, screen: Screen) -> list[tuple[str, str]]:
    """Writes all rows; lines for the table."""
    feed, done, shown = predictions.feed(), 0, ""
    try:
        with rows.writing(target) as writer:
            for arrays in predictions.rows(feed):
                writer.write(arrays)
                done += len(next(iter(arrays.values())))
                shown = ", ".join(f"{n} {a.dtype.name}{list(a.shape[1:])}" for n, a in arrays.items())
                screen.progress(done, feed.examples, f"{done:,} of {feed.examples:,} examples")
    finally:
        screen.close()
    return [("rows", f"{done:,}"), ("columns", shown), ("written to", target)]
