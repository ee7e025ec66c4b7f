"""A low-level training-loop framework for TensorFlow 2: parameter groups, freezing, partial restore.

The public names are below, imported when they are first used; everything else may change.
"""

import contextlib
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.noise import quiet_start

if TYPE_CHECKING:
    from trainer.data.sources.arrays import Arrays
    from trainer.data.sources.python import as_dataset
    from trainer.errors import UserError
    from trainer.groups.plan import Plan
    from trainer.model.module import ModelModule
    from trainer.model.names import named_variables
    from trainer.report.reporter import STOP
    from trainer.restore.weights import inspect_weights, restore_weights
    from trainer.run.api import Run
    from trainer.training.parameter_groups import ParameterGroups, parameter_groups
    from trainer.training.result import Result

_PUBLIC = {
    "Arrays": "trainer.data.sources.arrays",
    "ModelModule": "trainer.model.module",
    "ParameterGroups": "trainer.training.parameter_groups",
    "Plan": "trainer.groups.plan",
    "Result": "trainer.training.result",
    "Run": "trainer.run.api",
    "STOP": "trainer.report.reporter",
    "UserError": "trainer.errors",
    "as_dataset": "trainer.data.sources.python",
    "inspect_weights": "trainer.restore.weights",
    "named_variables": "trainer.model.names",
    "parameter_groups": "trainer.training.parameter_groups",
    "restore_weights": "trainer.restore.weights",
}
__all__ = [
    "STOP",
    "Arrays",
    "ModelModule",
    "ParameterGroups",
    "Plan",
    "Result",
    "Run",
    "UserError",
    "as_dataset",
    "inspect_weights",
    "named_variables",
    "parameter_groups",
    "restore_weights",
]


def __getattr__(name: str) -> Any:
    """A public name, its module imported now: TensorFlow is not loaded before it is needed."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    with contextlib.nullcontext() if "tensorflow" in sys.modules else quiet_start():
        return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
