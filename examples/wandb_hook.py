"""Every record of a run to Weights & Biases: `--hook=examples.wandb_hook.on_record`."""

from typing import Any

import wandb


def on_record(record: dict[str, Any]) -> None:
    """Logs the record's numbers, training and evaluation apart; WANDB_RUN_ID goes on with a run."""
    if wandb.run is None:
        wandb.init()
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
    wandb.log({f"{record['kind']}/{n}": v for n, v in numbers.items()}, step=record["step"])
