"""From `argv` and flagfiles to a `Config`; absl reads, and what absl would swallow is refused."""

import re
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from absl import flags

from trainer.errors import UserError, near
from trainer.flags.config import TOPICS, Config, kind_of


def parse(arguments: Sequence[str]) -> Config:
    """The flags in `arguments`, whose first element is the program's name.

    Raises:
      UserError: an unknown or malformed flag, a positional argument, or a flagfile that is missing,
        includes itself, or has a line that absl would read as something else.
      SystemExit: `--help` was given; the flags have been printed.
    """
    values = define()
    for argument, following in zip(arguments[1:], [*arguments[2:], ""], strict=False):
        if match := re.fullmatch(r"--?flagfile(=(.*))?", argument):
            check_flagfile(Path(match[2] if match[1] else following).expanduser(), ())
        _check_undefok(argument, "")
    try:
        rest = values(list(arguments))
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"--{error.flagname}: no such flag. {near(error.flagname, _names())}") from None
    except flags.Error as error:
        raise UserError(_advice(str(error))) from None
    if values["help"].value:
        print(f"{arguments[0]}: trains a TensorFlow model. Each flag may stand in a --flagfile.\n{_help()}")
        raise SystemExit(0)
    if len(rest) > 1:
        raise UserError(
            f"{rest[1]!r}: not a flag. Every argument is --NAME=VALUE; quote a value with blanks in a shell."
        )
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


def _advice(message: str) -> str:
    """What absl says of a value that it cannot read, with what the flag takes."""
    if match := re.match(r"flag (--(\w+)=.*?): ", message, re.DOTALL):
        kinds: dict[Any, str] = {bool: "true or false", int: "a whole number"}
        kind = next((kind_of(field) for field in fields(Config) if field.name == match[2]), None)
        return f"{match[1]}: takes {kinds.get(kind, 'a number')}."
    match = re.fullmatch(r"Missing value for flag (-*\w+).*", message)
    return f"{match[1]}: no value. Write {match[1]}=VALUE." if match else message


def _names() -> list[str]:
    return [*(f.name for f in fields(Config)), "flagfile", "help"]


def _help() -> str:
    """All flags by topic, each topic with an example."""
    lines = []
    for topic, example in TOPICS.items():
        lines += ["", f"{topic}, such as {example}"]
        lines += [_help_line(field) for field in fields(Config) if field.metadata["topic"] == topic]
    return "\n".join(lines)


def _help_line(field: Field[Any]) -> str:
    choices = f" ({'|'.join(field.metadata['choices'])})" if field.metadata["choices"] else ""
    default = field.default if kind_of(field) is not list else ""
    shown = f" [{default}]" if default not in ("", None) else ""
    return f"  --{field.name}: {field.metadata['help']}{choices}{shown}"


def check_flagfile(path: Path, above: tuple[Path, ...]) -> None:
    """Refuses what absl reads otherwise than its writer meant, in `path` and the files it includes.

    Raises:
      UserError: with file and line.
    """
    path = path.resolve()
    if path in above:
        raise UserError(f"--flagfile={path}: includes itself, by way of {' -> '.join(map(str, above))}.")
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(f"--flagfile={path}: cannot be read: {reason}.") from None
    for number, line in enumerate(lines, 1):
        _check_line(line, f"{path}:{number}")
        if match := re.match(r"\s*--?flagfile=(.*)", line):
            # absl takes an included path from the working directory, not from the including file.
            check_flagfile(Path(match[1].strip()).expanduser(), (*above, path))


def _check_undefok(argument: str, where: str) -> None:
    """Refuses absl's own flag that makes it pass over misspelt ones."""
    if re.match(r"--?undefok(=|\s|$)", argument):
        raise UserError(f"{where}{argument}: no flag is passed over here. Remove it.")


def _check_line(line: str, where: str) -> None:
    text = line.strip()
    if not text or line.startswith(("#", "//")):
        return
    if text.startswith("#"):
        raise UserError(f"{where}: {text!r}: a comment must start in the first column.")
    if not text.startswith("-"):
        raise UserError(
            f"{where}: {text!r}: not a flag. A line is --NAME=VALUE, or a comment that starts with #."
        )
    if match := re.search(r"\s#", text):
        raise UserError(
            f"{where}: {text!r}: {text[match.start() :].strip()!r} would be part of the value. Put "
            "the comment on a line of its own."
        )
    _check_undefok(text, f"{where}: ")
    if match := re.search(rf"\s(?:--(\w+)|-({'|'.join(_names())}))(=|\s|$)", text):
        raise UserError(
            f"{where}: {text!r}: a second flag, --{match[1] or match[2]}, on one line. Give it a line of "
            "its own."
        )
    value = text.partition("=")[2]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        raise UserError(f"{where}: {text!r}: quotes are part of the value in a flagfile. Remove them.")


def flagfile(config: Config) -> str:
    """The flags that differ from their defaults, as a flagfile that repeats the run."""
    lines = []
    for field in fields(Config):
        value = getattr(config, field.name)
        if not isinstance(value, str) and field.name in ("model", "dataset"):
            lines.append(f"# --{field.name} was a thing of Python: {config.given()[field.name]}")
        elif isinstance(value, list):
            lines += [f"--{field.name}={item}" for item in value]
        elif value != field.default:
            shown = str(value).lower() if isinstance(value, bool) else value
            lines.append(f"--{field.name}={shown}")
    return "\n".join(lines) + "\n"
