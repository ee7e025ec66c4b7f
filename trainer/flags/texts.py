"""What no flag can mean whatever it is for: blanks alone, control characters, a path that cannot be one."""

import os
from pathlib import Path

from trainer.errors import UserError

_READ = ("manual_dir", "init_from")  # paths on this machine
_MADE = ("workdir", "data_dir", "plan_out", "export_to")  # and what is made there if need be
_BUCKETS = ("gs://", "s3://", "az://")  # where TFDS can keep prepared data, too
_LETTERS = 20_000
# Where the end of a line stands for a blank.
_MANY_LINES = ("model", "dataset", "group", "init_rename", "init_adapt")


def check_text(name: str, text: str) -> None:
    """Refuses `text`, not empty, as a value of the flag `name`; looks at the disk and changes nothing.

    Raises:
      UserError: it is blank, holds what nobody can read, or is a path that cannot be used or made.
    """
    if len(text) > _LETTERS:
        raise UserError(f"--{name}={text}: has {len(text):,} letters. At most {_LETTERS:,} are read.")
    allowed = "\n\t" if name in _MANY_LINES else ""
    strange = [c for c in text if not c.isprintable() and c not in allowed]
    if strange:
        kind = "is not UTF-8" if "\ud800" <= strange[0] <= "\udfff" else "cannot be printed"
        raise UserError(f"--{name}={text}: {strange[0]!r} in it {kind}. Leave it out.")
    if not text.strip():
        raise UserError(f"--{name}={text}: is blank. Give it a value, or leave it out.")
    if name not in (*_READ, *_MADE):
        return
    if "://" not in text:
        _check_path(name, text)
    elif name != "data_dir":
        raise UserError(f"--{name}={text}: only a path on this machine can be used. Copy it, or mount it.")
    elif not text.startswith(_BUCKETS):
        raise UserError(f"--{name}={text}: no such kind of place. Give a path, or {', '.join(_BUCKETS)}...")


def _check_path(name: str, text: str) -> None:
    where = f"--{name}={text}"
    try:
        path = Path(text).expanduser()
        if os.path.lexists(path):
            os.stat(path)
        os.lstat(path)
    except RuntimeError:
        raise UserError(f"{where}: there is no user {text.split('/')[0]} here. Write the path out.") from None
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"{where}: cannot be used: {error.strerror}.") from None
    if name not in _MADE:
        return
    if name == "plan_out" and os.path.lexists(path) and not path.is_file():
        raise UserError(f"{where}: is there and is no file, so it is not written over. Name another.")
    folder = path if name in ("workdir", "data_dir") else path.parent
    ancestor = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), folder)
    if not ancestor.is_dir():
        raise UserError(f"{where}: {ancestor} is no directory. Name another place.")
    if ancestor != folder and not os.access(ancestor, os.W_OK | os.X_OK):
        raise UserError(f"{where}: cannot be made: {ancestor} is not yours to write in. Name another place.")
