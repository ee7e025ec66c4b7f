"""The one schema of what can be asked: name, type, default, help and topic of every flag.

`run.py` fills it from the command line, `trainer.Run(...)` from keywords of the same names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Protocol

from trainer.errors import UserError, near
from trainer.flags import conditions, criteria, effect, layer_decay
from trainer.flags.span import span
from trainer.flags.texts import check_text

MODES = (
    "train",
    "plan",
    "evaluate",
    "predict",
    "inspect",
    "export",
    "verify_resume",
    "verify_distribution",
    "lr_find",
    "report",
)

# {topic of --help: an example}, in the order of the fields below.
TOPICS = {
    "What to do": "--mode=plan",
    "What is trained": "--group='conv1/.* frozen' --group='.* adam cosine(1e-3, warmup=5%)'",
    "On what": "--dataset=mnist --manual_dir=/data/mnist",
    "For how long": "--train_for=3epochs --eval_every=500 --stop_when='accuracy >= 0.992'",
    "How a step is made": "--precision=mixed_bfloat16 --clip_norm=1.0 --accumulate=4",
    "Where": "--strategy=mirrored --devices=GPU:0,GPU:1",
    "From where": "--init_from=/runs/pretrain --init_only='conv.*'",
    "What is left behind": "--workdir=runs/mnist --keep=3 --keep_best=accuracy",
    "Other modes": "--mode=export --export_to=/models/mnist",
}


class ModelLike(Protocol):
    """What Python may pass for `model`: a module, or anything with these two functions."""

    @property
    def build(self) -> Callable[..., Any]:
        """As docs/new_model.md says."""

    @property
    def loss(self) -> Callable[..., Any]:
        """As docs/new_model.md says."""


class DatasetLike(Protocol):
    """What Python may pass for `dataset`: a source, such as `trainer.Arrays`."""

    def sizes(self) -> Any:
        """`{split: examples}`."""

    def spec(self) -> Any:
        """Of one example."""


def _flag(topic: str, default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    metadata = {"topic": topic, "help": text, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=list, metadata=metadata)
    return field(default=default, metadata=metadata)


_DO, _WHAT, _DATA, _LONG, _STEP, _WHERE, _FROM, _LEFT, _MORE = TOPICS


@dataclass(frozen=True, kw_only=True)
class Config:
    """One value per flag; a list is a flag that repeats, `None` is a flag not given.

    Raises:
      UserError: `check`, which is to be called once, refuses what no run can use.
    """

    mode: str = _flag(_DO, "train", "What to do.", MODES)
    model: str | ModelLike = _flag(
        _WHAT, "", "Model module in models/ or dotted path: `mnist_cnn(filters=32)`."
    )
    group: Sequence[str] = _flag(
        _WHAT,
        [],
        "PATTERN OPTIMIZER SCHEDULE [name=ID] [from=D] [until=D] [loss=NAME] [every=N], or PATTERN frozen; "
        "repeats.",
    )
    no_decay: Sequence[str] = _flag(_WHAT, [], "Variables (regex) that no weight decay touches; repeats.")
    layer_decay: str | float = _flag(
        _WHAT, "", "FACTOR [by=REGEX]: each rate times FACTOR to the power of the variable's depth in blocks."
    )
    dataset: str | DatasetLike | Mapping[str, Any] = _flag(
        _DATA,
        "",
        "A TFDS name, a file or folder of your own, or a function: `mnist`, `table.csv`, `photos/`.",
    )
    fallback_dataset: str = _flag(_DATA, "", "What to train on where --dataset cannot be had.")
    data_dir: str = _flag(_DATA, "", "Where TFDS keeps prepared data (TFDS's own default if empty).")
    manual_dir: str = _flag(_DATA, "", "Where the original files of the data set lie.")
    data_residency: str = _flag(
        _DATA,
        "auto",
        "Data on the device, decoded on the host, or read as it goes.",
        ("auto", "resident", "host", "streaming"),
    )
    pad: Sequence[str] = _flag(
        _DATA, [], "FEATURE [multiple=N] [max=N] [value=X] [bucket=BATCHES]: bring lengths to one; repeats."
    )
    bad_examples: str = _flag(_DATA, "refuse", "Examples that cannot be used.", ("refuse", "skip", "keep"))
    train_split: str = _flag(_DATA, "train", "Split to train on.")
    eval_split: str = _flag(_DATA, "test", "Split to evaluate on; `none` for no evaluation.")
    batch_size: int = _flag(_DATA, 128, "Examples per batch over all replicas.")
    train_for: str | int = _flag(_LONG, "", "Duration: `500`, `500steps`, `3epochs`.")
    log_every: str | int = _flag(_LONG, "100", "Duration between log points.")
    eval_every: str | int = _flag(_LONG, "1epoch", "Duration between evaluations.")
    save_every: str | int = _flag(_LONG, "1epoch", "Duration between checkpoints.")
    stop_when: Sequence[str] = _flag(
        _LONG, [], "`accuracy >= 0.992`, `loss:min stalls 3 evaluations`: end the run then; repeats."
    )
    seed: int = _flag(_STEP, 0, "Seeds the initial weights, the order of the data and every mask.")
    precision: str = _flag(
        _STEP, "float32", "Numbers.", ("float32", "float64", "mixed_bfloat16", "mixed_float16")
    )
    clip_norm: float | None = _flag(_STEP, None, "Largest global norm of the gradient over all groups.")
    accumulate: int = _flag(_STEP, 1, "Batches whose gradients are summed for one step.")
    ema: float | None = _flag(_STEP, None, "Decay of an average of the weights, kept beside them.")
    on_nonfinite: str = _flag(_STEP, "halt", "At a non-finite loss or gradient.", ("halt", "skip", "off"))
    jit_compile: bool = _flag(_STEP, False, "Compile forward and backward pass with XLA.")
    deterministic: bool = _flag(_STEP, False, "TensorFlow's op determinism: same bits on a GPU too.")
    strategy: str = _flag(_WHERE, "auto", "Engine.", ("auto", "one", "mirrored", "multi_worker"))
    devices: str = _flag(_WHERE, "", "Devices to use: `GPU:0,GPU:1`.")
    virtual_devices: int = _flag(_WHERE, 0, "Split the CPU into this many logical devices.")
    communication: str = _flag(_WHERE, "auto", "All-reduce between workers.", ("auto", "ring", "nccl"))
    init_from: str = _flag(_FROM, "", "Checkpoint or weights file whose values the model starts from.")
    init_only: Sequence[str] = _flag(_FROM, [], "Restore only these variables (regex); repeats.")
    init_skip: Sequence[str] = _flag(_FROM, [], "Leave these alone, in the model or the source; repeats.")
    init_rename: Sequence[str] = _flag(_FROM, [], "MODEL_REGEX -> SOURCE_NAME; repeats.")
    init_cast: bool = _flag(_FROM, False, "Let a restored value change its float width.")
    init_weights: str = _flag(_FROM, "raw", "Which weights of the source.", ("raw", "ema"))
    init_adapt: Sequence[str] = _flag(_FROM, [], "PATTERN METHOD(...): change a value's shape; repeats.")
    init_layout: str = _flag(_FROM, "", "Whose layout the source's arrays have.", ("", "keras", "torch"))
    workdir: str = _flag(_LEFT, "", "Directory of the run: checkpoints, metrics, plan, event files.")
    keep: int = _flag(_LEFT, 3, "Newest checkpoints to keep.")
    keep_best: str = _flag(_LEFT, "", "Also keep the checkpoint best in this metric: `accuracy`, `rmse:min`.")
    hook: Sequence[str] = _flag(
        _LEFT, [], "Function of each record, by dotted path: `my_module.on_record`; repeats."
    )
    accept_plan_change: bool = _flag(_LEFT, False, "Resume although the plan differs from the saved one.")
    report_to: str = _flag(
        _LEFT, "", "File of the report; report.html in the workdir if empty, `none` for none."
    )
    histograms: bool = _flag(_LEFT, False, "Histograms of the trained weights for TensorBoard.")
    profile: str = _flag(_LEFT, "", "Steps to profile for TensorBoard, first:last: `100:120`.")
    show_groups: bool = _flag(_LEFT, False, "A live table of the groups under the progress bar.")
    plan_out: str = _flag(_MORE, "", "File that --mode=plan writes the plan to, as JSON.")
    full: bool = _flag(_MORE, False, "For plan: a row for each variable, not folded by layer or block.")
    propose_out: str = _flag(_MORE, "", "Flagfile that --mode=inspect writes its proposal to.")
    checkpoint: str = _flag(_MORE, "newest", "For evaluate, predict, export: `newest`, `best` or a step.")
    weights: str = _flag(_MORE, "raw", "For evaluate, predict, export: which weights.", ("raw", "ema"))
    predict_to: str = _flag(_MORE, "", "File that --mode=predict makes: .csv, .parquet, .npz, .jsonl, or -.")
    export_to: str = _flag(_MORE, "", "Directory that --mode=export makes.")
    runs: Sequence[str] = _flag(_MORE, [], "For report: working directories to compare; repeats.")
    export_format: str = _flag(
        _MORE, "", "Of saved_model,keras,tflite; a SavedModel, and .keras where it can be, if empty."
    )
    verify_steps: int = _flag(_MORE, 6, "Steps that the verify modes train.")

    def __post_init__(self) -> None:
        """A flag that repeats is a list; a number stands for a duration's steps."""
        for f in fields(self):
            value, kind = getattr(self, f.name), kind_of(f)
            if kind is list:
                object.__setattr__(self, f.name, [value] if isinstance(value, str) else list(value))
            elif kind is str and (type(value) is int or (f.name == "layer_decay" and type(value) is float)):
                object.__setattr__(self, f.name, str(value))

    @property
    def model_name(self) -> str:
        """What messages, plans and checkpoints call the model."""
        return _name(self.model)

    @property
    def dataset_name(self) -> str:
        """What messages, plans and checkpoints call the data set."""
        return _name(self.dataset)

    def given(self) -> dict[str, Any]:
        """`{flag: value}` of the flags that differ from their defaults; a thing of Python as `<its name>`."""
        values = {name: getattr(self, name) for name, default in defaults().items()}
        differ = {name: value for name, value in values.items() if value != defaults()[name]}
        things = {n for n in ("model", "dataset") if not isinstance(getattr(self, n), str)}
        return {name: f"<{_name(v)}>" if name in things else v for name, v in differ.items()}

    def check(self) -> None:
        """Refuses values that no run can use; needs no TensorFlow.

        Raises:
          UserError: names the flag, its value and what it takes.
        """
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            _check_type(f, value)
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and text:
                    check_text(f.name, text)
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
        span(self.profile, "--profile")
        effect.check(vars(self), self.given(), MODES)
        criteria.split(self.keep_best)
        conditions.parse(self.stop_when)
        for name, least, most in bounds:
            if not least <= getattr(self, name) <= most:
                raise UserError(f"--{name}={getattr(self, name)}: must lie from {least} to {most}.")
        if self.clip_norm is not None and not 0 < self.clip_norm < float("inf"):
            raise UserError(f"--clip_norm={self.clip_norm}: must be a finite number above 0.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"--ema={self.ema}: must lie between 0 and 1, such as 0.999.")
        layer_decay.parse(str(self.layer_decay))


def defaults() -> dict[str, Any]:
    """`{flag: value}` where nothing is given."""
    return {f.name: [] if f.default is MISSING else f.default for f in fields(Config)}


def kind_of(flag: "Field[Any]") -> type:
    """The type of a flag on the command line: `str`, `int`, `float`, `bool`, or `list` (of `str`)."""
    if flag.default is MISSING:
        return list
    return float if flag.default is None else type(flag.default)


def _check_type(flag: "Field[Any]", value: Any) -> None:
    """Refuses what Python may pass and no command line could."""
    kind, allowed = kind_of(flag), {bool: bool, int: int, float: int | float, str: str}
    if flag.name in ("model", "dataset") or (value is None and flag.default is None):
        return
    if isinstance(value, int) and value.bit_length() > 63:  # Python would not even write it out
        raise UserError(f"--{flag.name}: a number of {value.bit_length():,} bits is too large.")
    if kind is list:
        right = all(isinstance(item, str) for item in value)
    else:
        right = isinstance(value, allowed[kind]) and isinstance(value, bool) == (kind is bool)
    if not right:
        takes = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
        raise UserError(f"--{flag.name}={value!r}: takes {takes.get(kind, 'a list of text')}.")


def _name(value: Any) -> str:
    """Text as it is; of a thing, what it calls itself."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "arrays"
    return str(getattr(value, "__name__", None) or getattr(value, "name", None) or type(value).__name__)
