"""How a run went."""

from dataclasses import dataclass, field


@dataclass
class Result:
    """How a run went.

    Attributes:
      metrics: `{"loss": mean, metric: mean, "examples": count}` of the last evaluation; {} where the
        run ended at none.
      step: steps of the run that are done.
      steps: how many of them this process did.
      seconds: from the loop's start to its end.
      training_seconds: of these, in training steps; the rest are evaluations and checkpoints.
      stopped: whether a signal or a hook ended the run before its last step.
      hooked: whether it was a hook.
      ended: the condition of `--stop_when` that ended the run; empty where none did.

    Example:
      >>> import numpy as np, trainer
      >>> data = {"image": np.zeros([64, 28, 28, 1], "uint8"), "label": np.zeros([64], "int64")}
      >>> rules = [".* adam 1e-3"]
      >>> run = trainer.Run(
      ...     model="mnist_mlp(hidden=8)", dataset=data, eval_split="train", group=rules, train_for=3
      ... )
      >>> result = run.train()
      >>> result.step, result.stopped, result.metrics["examples"]
      (3, False, 64)
    """

    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    stopped: bool = False
    hooked: bool = False
    ended: str = ""

    @property
    def over(self) -> bool:
        """Whether the run ends here, by whatever."""
        return self.stopped or bool(self.ended)
