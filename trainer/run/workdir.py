"""The working directory of a run and its files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.checkpoints import files, manifest
from trainer.errors import UserError
from trainer.flags.command_line import flagfile
from trainer.flags.config import Config


@dataclass(frozen=True)
class Workdir:
    """What a run leaves behind, in `path`."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> "Workdir | None":
        """The directory that `--workdir` names; None where it is not given."""
        return cls(Path(config.workdir).expanduser()) if config.workdir else None

    @classmethod
    def needed(cls, config: Config) -> "Workdir":
        """The same, for what cannot do without.

        Raises:
          UserError: `--workdir` is not given.
        """
        if found := cls.of(config):
            return found
        raise UserError(
            "--workdir: not given. Name a directory for checkpoints and metrics, such as runs/mnist."
        )

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie, a directory each."""
        return self.path / "checkpoints"

    @property
    def has_checkpoints(self) -> bool:
        """Whether a run would go on from here, damaged checkpoints included."""
        return bool(manifest.scan(self.checkpoints))

    def record(
        self, plan: Mapping[str, Any], config: Config, environment: Mapping[str, Any] | None = None
    ) -> None:
        """Writes `plan.json`, `environment.json`, and `flags.txt`, a flagfile that repeats the run.

        Raises:
          UserError: one of them cannot be written.
        """
        self._write("plan.json", json.dumps(plan, indent=1) + "\n")
        if environment:
            self._write("environment.json", json.dumps(environment, indent=1) + "\n")
        self._write("flags.txt", flagfile(replace(config, accept_plan_change=False)))

    def _write(self, name: str, text: str) -> None:
        try:
            files.replace(self.path / name, text)
        except OSError as error:
            raise UserError(f"--workdir={self.path}: {name} cannot be written: {error.strerror}.") from error
