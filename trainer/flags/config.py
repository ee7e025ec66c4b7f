"""Every flag of the program: name, type, default and help, once. `run.py` makes absl flags of it."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_type_hints

from trainer.errors import UserError, near

MODES = (
    "train",
    "plan",
    "evaluate",
    "inspect",
    "export",
    "verify_resume",
    "verify_distribution",
)

# Flags that only these modes heed.
_MODES_OF = {
    "plan_out": ("plan",),
    "propose_out": ("inspect",),
    "export_to": ("export",),
    "checkpoint": ("evaluate", "export"),
    "weights": ("evaluate", "export"),
    "verify_steps": ("verify_resume", "verify_distribution"),
    "accept_plan_change": ("train", "plan"),
}
_INIT_RULES = ("init_only", "init_skip", "init_rename", "init_cast", "init_adapt", "init_layout")
# Flags that nothing heeds without another one: (flag, the other, what the other must not be, what to do).
_OF_NO_USE = (
    *((name, "init_from", "", "Give --init_from=PATH") for name in (*_INIT_RULES, "init_weights")),
    ("propose_out", "model", "", "Give the --model that the file is to fit"),
    ("keep_best", "eval_split", "none", "Name an --eval_split to find the best by"),
    ("eval_every", "eval_split", "none", "Name an --eval_split"),
)


def _flag(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    metadata = {"help": text, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=list, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """One value per flag; a `list[str]` is a flag that repeats, `None` is a flag not given."""

    mode: str = _flag("train", "What to do.", MODES)
    # What is trained
    model: str = _flag("", "Model module in models/ or dotted path: `mnist_cnn(filters=32)`.")
    group: list[str] = _flag(
        [], "PATTERN OPTIMIZER SCHEDULE [name=ID] [from=D] [until=D], or PATTERN frozen; repeats."
    )
    no_decay: list[str] = _flag([], "Variables (regex) that no weight decay touches; repeats.")
    layer_decay: float = _flag(1.0, "Each variable's rate times this to the power of its depth.")
    # On what
    dataset: str = _flag("", "A TFDS name or a builder in datasets/: `mnist`, `digits`.")
    fallback_dataset: str = _flag("", "What to train on where --dataset cannot be had.")
    data_dir: str = _flag("", "Where TFDS keeps prepared data (TFDS's own default if empty).")
    manual_dir: str = _flag("", "Where the original files of the data set lie.")
    data_residency: str = _flag(
        "auto", "Data on the device or read as it goes.", ("auto", "resident", "streaming")
    )
    train_split: str = _flag("train", "Split to train on.")
    eval_split: str = _flag("test", "Split to evaluate on; `none` for no evaluation.")
    batch_size: int = _flag(128, "Examples per batch over all replicas.")
    # For how long
    train_for: str = _flag("", "Duration: `500`, `500steps`, `3epochs`.")
    log_every: str = _flag("100", "Duration between log points.")
    eval_every: str = _flag("1epoch", "Duration between evaluations.")
    save_every: str = _flag("1epoch", "Duration between checkpoints.")
    # How a step is made
    seed: int = _flag(0, "Seeds the initial weights, the order of the data and every mask.")
    precision: str = _flag("float32", "Numbers.", ("float32", "float64", "mixed_bfloat16", "mixed_float16"))
    clip_norm: float | None = _flag(None, "Largest global norm of the gradient over all groups.")
    accumulate: int = _flag(1, "Batches whose gradients are summed for one step.")
    ema: float | None = _flag(None, "Decay of an average of the weights, kept beside them.")
    on_nonfinite: str = _flag("halt", "At a non-finite loss or gradient.", ("halt", "skip", "off"))
    jit_compile: bool = _flag(False, "Compile forward and backward pass with XLA.")
    deterministic: bool = _flag(False, "TensorFlow's op determinism: same bits on a GPU too.")
    # Where
    strategy: str = _flag("auto", "Engine.", ("auto", "one", "mirrored", "multi_worker"))
    devices: str = _flag("", "Devices to use: `GPU:0,GPU:1`.")
    virtual_devices: int = _flag(0, "Split the CPU into this many logical devices.")
    communication: str = _flag("auto", "All-reduce between workers.", ("auto", "ring", "nccl"))
    # From where
    init_from: str = _flag("", "Checkpoint or weights file whose values the model starts from.")
    init_only: list[str] = _flag([], "Restore only these variables (regex); repeats.")
    init_skip: list[str] = _flag([], "Leave these alone, in the model or the source; repeats.")
    init_rename: list[str] = _flag([], "MODEL_REGEX -> SOURCE_NAME; repeats.")
    init_cast: bool = _flag(False, "Let a restored value change its float width.")
    init_weights: str = _flag("raw", "Which weights of the source.", ("raw", "ema"))
    init_adapt: list[str] = _flag([], "PATTERN METHOD(...): change a value's shape; repeats.")
    init_layout: str = _flag("", "Whose layout the source's arrays have.", ("", "keras", "torch"))
    # What is left behind
    workdir: str = _flag("", "Directory of the run: checkpoints, metrics, plan, event files.")
    keep: int = _flag(3, "Newest checkpoints to keep.")
    keep_best: str = _flag("", "Also keep the checkpoint best in this metric: `accuracy`.")
    accept_plan_change: bool = _flag(False, "Resume although the plan differs from the saved one.")
    # Other modes
    plan_out: str = _flag("", "File that --mode=plan writes the plan to, as JSON.")
    checkpoint: str = _flag("newest", "For evaluate and export: `newest`, `best` or a step.")
    weights: str = _flag("raw", "For evaluate and export: which weights.", ("raw", "ema"))
    propose_out: str = _flag("", "Flagfile that --mode=inspect writes its proposal to.")
    export_to: str = _flag("", "Directory that --mode=export makes.")
    verify_steps: int = _flag(6, "Steps that the verify modes train.")

    @classmethod
    def types(cls) -> dict[str, Any]:
        """`{flag name: type}`."""
        return get_type_hints(cls)

    def check(self) -> None:
        """Refuses values that no run can use; needs no TensorFlow.

        Raises:
          UserError: names the flag, its value and what it takes.
        """
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            if choices and value not in choices:
                raise UserError(
                    f"--{f.name}={value}: not one of {', '.join(choices)}. {near(value, choices)}"
                )
        bounds: tuple[tuple[str, float, float], ...] = (
            ("batch_size", 1, 1 << 31),
            ("accumulate", 1, 1 << 16),
            ("seed", 0, 2**31 - 1),
            ("keep", 1, 1 << 31),
            ("virtual_devices", 0, 64),
            ("verify_steps", 2, 1000),
        )
        self._check_use()
        for name, least, most in bounds:
            if not least <= getattr(self, name) <= most:
                raise UserError(f"--{name}={getattr(self, name)}: must lie from {least} to {most}.")
        if self.clip_norm is not None and not 0 < self.clip_norm < float("inf"):
            raise UserError(f"--clip_norm={self.clip_norm}: must be a finite number above 0.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"--ema={self.ema}: must lie between 0 and 1, such as 0.999.")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"--layer_decay={self.layer_decay}: must be above 0 and at most 1, such as 0.75.")

    def _check_use(self) -> None:
        """Refuses a flag that the mode or the other flags leave without effect."""
        defaults = {f.name: [] if f.default is MISSING else f.default for f in fields(self)}
        given = [name for name, default in defaults.items() if getattr(self, name) != default]
        for name in given:
            modes = _MODES_OF.get(name, MODES)
            if self.mode not in modes:
                raise UserError(
                    f"{self._shown(name)}: has no effect with --mode={self.mode}, only with "
                    f"--mode={' or --mode='.join(modes)}. Remove it."
                )
            if self.mode == "inspect" and not self.model and name in _INIT_RULES:
                raise UserError(
                    f"{self._shown(name)}: --mode=inspect tries it on a model. Give --model, or remove it."
                )
        for name, other, nothing, what_to_do in _OF_NO_USE:
            if name in given and getattr(self, other) == nothing:
                lacking = f"with --{other}={nothing}" if nothing else f"without --{other}"
                raise UserError(f"{self._shown(name)}: has no effect {lacking}. {what_to_do}, or remove it.")
        if self.precision == "mixed_float16" and self.on_nonfinite == "off":
            raise UserError(
                "--on_nonfinite=off: --precision=mixed_float16 must find every overflow to set its loss "
                "scale. Give --on_nonfinite=skip or halt."
            )

    def _shown(self, name: str) -> str:
        """The flag `name` as one writes it; of one that repeats, the first."""
        value = getattr(self, name)
        value = value[0] if isinstance(value, list) else value
        return f"--{name}" if value is True else f"--{name}={value}"
