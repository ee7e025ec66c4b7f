"""From `argv` and flagfiles to a `Config`, and back; what could be read in two ways is refused."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from absl import flags

from trainer.errors import UserError, near
from trainer.flags.config import TOPICS, Config, kind_of
from trainer.flags.flagfiles import check_line, lines

_FLAG = re.compile(r"--?(\w[\w.-]*)(?:=(.*))?", re.DOTALL)
_DEEP = 20  # flagfiles that include each other
_FILES = 200  # flagfiles in all

# What other programs call what is asked for here, and how it is asked for.
_ELSEWHERE = {
    "epochs": "--train_for=3epochs",
    "steps": "--train_for=500steps",
    "lr": "the third column of --group, such as --group='.* adam constant(1e-3)'",
    "optimizer": "the second column of --group, such as --group='.* adam constant(1e-3)'",
    "weight_decay": "an argument of the optimizer, such as --group='.* adamw(weight_decay=1e-4) 1e-3'",
    "momentum": "an argument of the optimizer, such as --group='.* sgd(momentum=0.9) 0.1'",
    "warmup": "an argument of the schedule, such as --group='.* adam cosine(1e-3, warmup=5%)'",
    "freeze": "a rule of its own before the others, such as --group='conv1/.* frozen'",
    "gpus": "--devices=GPU:0,GPU:1; without it all GPUs are used",
    "resume": "nothing: the same command with the same --workdir goes on from its newest checkpoint",
    "output_dir": "--workdir",
    "pretrained": "--init_from=PATH",
    "amp": "--precision=mixed_bfloat16 or mixed_float16",
    "data": "--dataset=NAME, and --data_dir for where it is kept",
    "help": "--help",
}
_ALSO = {
    "epochs": "num_epochs n_epochs max_epochs epoch num_train_epochs",
    "steps": "max_steps num_steps train_steps iterations max_iter",
    "lr": "learning_rate base_lr rate lr_schedule scheduler lr_scheduler schedule",
    "optimizer": "opt optim",
    "weight_decay": "wd l2",
    "warmup": "warmup_steps warmup_epochs",
    "freeze": "frozen freeze_layers",
    "gpus": "gpu num_gpus n_gpus device gpu_ids accelerator",
    "resume": "resume_from restart continue resume_from_checkpoint",
    "output_dir": "logdir log_dir model_dir checkpoint_dir save_dir out output",
    "pretrained": "weights_path load load_weights ckpt checkpoint_path init",
    "amp": "fp16 bf16 mixed_precision dtype half",
    "data": "data_path dataset_dir",
    "help": "h helpfull helpshort",
}
_CALLED = {word: theirs for theirs in _ELSEWHERE for word in (theirs, *_ALSO.get(theirs, "").split())}


@dataclass(frozen=True)
class _Given:
    """A flag as it was given.

    Attributes:
      name: of the flag.
      value: as text.
      source: the flagfile; "" for the command line.
      line: of the flagfile.
      depth: how many flagfiles lead to it.
    """

    name: str
    value: str
    source: str = ""
    line: int = 0
    depth: int = 0

    def __str__(self) -> str:
        """The flag, and where it stands in a file."""
        return f"--{self.name}={self.value}" + (f" ({self.source}:{self.line})" if self.source else "")


def parse(arguments: Sequence[str]) -> Config:
    """The flags in `arguments`, whose first element is the program's name.

    Of a flag that takes one value, the command line has the last word over a flagfile, and a flagfile over
    those it includes; of two flagfiles side by side, the later. An empty value stands for the default.

    Raises:
      UserError: an unknown or malformed flag, a positional argument, one flag with two values in one place,
        or a flagfile that is missing, includes itself, or has a line that is no flag.
      SystemExit: `--help` was given; the flags have been printed.
    """
    given = list(_Reader().command_line(arguments[1:]))
    if any((flag.name, flag.value) == ("help", "true") for flag in given):
        print(f"{arguments[0]}: trains a TensorFlow model. Each flag may stand in a --flagfile.\n{_help()}")
        raise SystemExit(0)
    values = define()
    try:
        values([arguments[0], *(f"--{flag.name}={flag.value}" for flag in _chosen(given))])
    except flags.Error as error:
        raise UserError(_advice(str(error))) from None
    config = Config(**{f.name: values[f.name].value for f in fields(Config)})
    config.check()
    return config


def define() -> flags.FlagValues:
    """absl flags of the fields of `Config`, in a `FlagValues` of their own."""
    values = flags.FlagValues()
    define_one = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        list: flags.DEFINE_multi_string,
    }
    for field in fields(Config):
        kind = kind_of(field)
        default = [] if kind is list else field.default
        define_one[kind](field.name, default, field.metadata["help"], flag_values=values)
    flags.DEFINE_bool("help", False, "Show the flags.", flag_values=values)
    return values


def _chosen(given: Sequence[_Given]) -> Iterator[_Given]:
    """The flags that count, in the order written."""
    kinds = _kinds()
    last: dict[str, _Given] = {}
    seen: dict[tuple[str, str], _Given] = {}
    for flag in given:
        before = seen.setdefault((flag.name, flag.source), flag)
        if kinds[flag.name] is not list and before.value != flag.value:
            raise UserError(f"{flag}: given before as {before}. Give it once.")
        if flag.name not in last or flag.depth <= last[flag.name].depth:
            last[flag.name] = flag
    for flag in given:
        if kinds[flag.name] is list and not flag.value.strip():
            raise UserError(f"{flag}: is empty. Give it a value, or leave it out.")
        if kinds[flag.name] is list or (flag is last[flag.name] and flag.value):
            _check_number(flag, kinds[flag.name])
            yield flag


def _check_number(flag: _Given, kind: type) -> None:
    """Refuses digits of other scripts, which Python reads."""
    if kind in (int, float) and (not flag.value.isascii() or "_" in flag.value):
        raise UserError(f"{flag}: takes {_TAKES[kind]} in the digits 0 to 9.")


def _kinds() -> dict[str, type]:
    return {**{f.name: kind_of(f) for f in fields(Config)}, "flagfile": str, "help": bool}


_TAKES = {bool: "true or false", int: "a whole number", float: "a number"}


def _advice(message: str) -> str:
    """What absl says of a value that it cannot read, with what the flag takes."""
    if match := re.match(r"flag (--(\w+)=.*?): ", message, re.DOTALL):
        return f"{match[1]}: takes {_TAKES.get(_kinds().get(match[2], str), 'a number')}."
    return message


def _help() -> str:
    """All flags by topic, each topic with an example."""
    shown = []
    for topic, example in TOPICS.items():
        shown += ["", f"{topic}, such as {example}"]
        shown += [_help_line(field) for field in fields(Config) if field.metadata["topic"] == topic]
    return "\n".join(shown)


def _help_line(field: Field[Any]) -> str:
    choices = f" ({'|'.join(field.metadata['choices'])})" if field.metadata["choices"] else ""
    default = field.default if kind_of(field) is not list else ""
    shown = f" [{default}]" if default not in ("", None) else ""
    return f"  --{field.name}: {field.metadata['help']}{choices}{shown}"


class _Reader:
    """Flags out of the command line and the flagfiles that it names."""

    def __init__(self) -> None:
        self._kinds = _kinds()
        self._files = 0

    def command_line(self, arguments: Sequence[str]) -> Iterator[_Given]:
        """The flags in `arguments`; a value may be an argument of its own."""
        rest = iter(arguments)
        for argument in rest:
            if argument == "--":
                continue
            match = _FLAG.fullmatch(argument)
            if not match:
                raise UserError(
                    f"{argument!r}: not a flag. Every argument is --NAME=VALUE; quote a value with blanks in "
                    "a shell."
                )
            name, value = match[1], match[2]
            if value is None and self._kinds.get(name, bool) is not bool:
                value = next(rest, None)
                if value is None or value.startswith("--"):
                    raise UserError(f"--{name}: no value. Write --{name}=VALUE.")
            yield from self._flag(name, value, "", 0, ())

    def _flag(
        self, name: str, value: str | None, source: str, line: int, above: tuple[Path, ...]
    ) -> Iterator[_Given]:
        where = f"{source}:{line}: " if source else ""
        if name == "undefok":  # absl's own
            raise UserError(f"{where}--undefok={value or ''}: no flag is passed over here. Remove it.")
        positive = name.removeprefix("no")
        if name not in self._kinds and positive != name and self._kinds.get(positive) is bool:
            if value is not None:
                raise UserError(
                    f"{where}--{name}={value}: takes no value. Write --{positive}=true or =false."
                )
            name, value = positive, "false"
        if name not in self._kinds:
            raise UserError(f"{where}--{name}: no such flag. {_instead(name, self._kinds)}")
        if value is None and self._kinds[name] is not bool:
            raise UserError(f"{where}--{name}: no value. Write --{name}=VALUE.")
        if name == "flagfile":
            yield from self._file(value or "", above)
        else:
            yield _Given(name, "true" if value is None else value, source, line, len(above))

    def _file(self, text: str, above: tuple[Path, ...]) -> Iterator[_Given]:
        """The flags in a flagfile. An included path is taken from the working directory, too."""
        path, found = lines(text)
        self._files += 1
        if path in above:
            by = " -> ".join(map(str, above))
            raise UserError(f"--flagfile={path}: includes itself, by way of {by}.")
        if len(above) >= _DEEP or self._files > _FILES:
            raise UserError(
                f"--flagfile={path}: at most {_FILES} flagfiles are read, and {_DEEP} within each other. "
                "Put the flags into fewer."
            )
        for number, line in enumerate(found, 1):
            stripped = line.strip()
            check_line(line, f"{path}:{number}", self._kinds)
            if match := _FLAG.fullmatch(stripped):
                yield from self._flag(match[1], match[2], str(path), number, (*above, path))
            elif stripped and not line.startswith(("#", "//")):
                raise UserError(f"{path}:{number}: {stripped!r}: not a flag. A line is --NAME=VALUE.")


def _instead(name: str, known: dict[str, type]) -> str:
    """A sentence on the flag that does what `name` does elsewhere, else on those that look like it."""
    words = name.lower().replace("-", "_")
    return f"Here it is {_ELSEWHERE[_CALLED[words]]}." if words in _CALLED else near(words, known)


def flagfile(config: Config) -> str:
    """The flags that differ from their defaults, as a flagfile that repeats the run."""
    written = []
    for field in fields(Config):
        value = getattr(config, field.name)
        if not isinstance(value, str) and field.name in ("model", "dataset"):
            written.append(f"# --{field.name} was a thing of Python: {config.given()[field.name]}")
        elif isinstance(value, list):
            written += [f"--{field.name}={_line(item)}" for item in value]
        elif value != field.default:
            shown = str(value).lower() if isinstance(value, bool) else _line(str(value))
            written.append(f"--{field.name}={shown}")
    return "\n".join(written) + "\n"


def _line(value: str) -> str:
    """A value on one line: where a flag may hold a line's end, a blank means the same."""
    return " ".join(value.splitlines())
