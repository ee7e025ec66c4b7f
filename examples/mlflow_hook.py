"""Every record of a run as metrics of MLflow: `--hook=examples.mlflow_hook.on_record`."""

from typing import Any

import mlflow


def on_record(record: dict[str, Any]) -> None:
    """Logs the record's numbers, training and evaluation apart; MLFLOW_RUN_ID goes on with a run."""
    if mlflow.active_run() is None:
        mlflow.start_run()
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
    mlflow.log_metrics({f"{record['kind']}/{n}": v for n, v in numbers.items()}, step=record["step"])
