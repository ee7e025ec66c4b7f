"""The files of a folder of images: which are whose, how large the images are, and which cannot be read."""

import contextlib
import functools
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UserError, listing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
READERS = 8  # files whose heads are read at once
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF")  # that TensorFlow decodes; MPO is a JPEG with more behind it
_END = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # what a whole file ends with
_SPLITS = r"train|training|test|testing|val|valid|validation"
_ORIENTATION = 0x0112  # of EXIF

Files = dict[str, list[Path]]  # by split


@dataclass(frozen=True)
class Head:
    """What the beginning of a file tells.

    Attributes:
      size: (height, width) as stored.
      turned: a camera says that it is to be shown turned or mirrored.
      fault: what is wrong with the file; empty for nothing.
    """

    size: tuple[int, int] = (0, 0)
    turned: bool = False
    fault: str = ""


def find_images(flag: str, folder: Path) -> tuple[Files, list[str]]:
    """(images by split, sorted by name; sentences on what is left out). What is hidden does not count.

    Raises:
      UserError: there is none, or the folders are not SPLIT/CLASS/FILE or CLASS/FILE throughout.
    """
    shown = [f for f in folder.rglob("*") if not any(p.startswith(".") for p in f.relative_to(folder).parts)]
    files = sorted(f for f in shown if f.is_file())
    images = [f for f in files if f.suffix.lower() in SUFFIXES]
    deep, flat = ([f for f in images if len(f.relative_to(folder).parts) == n] for n in (3, 2))
    if deep and flat:
        raise UserError(
            f"{flag}: has images both as CLASS/FILE ({flat[0].relative_to(folder)}) and as SPLIT/CLASS/FILE "
            f"({deep[0].relative_to(folder)}). Keep one of the two."
        )
    if not deep and not flat:
        raise UserError(f"{flag}: there is no image as CLASS/FILE or SPLIT/CLASS/FILE in {folder}.")
    classes = sorted({f.parent.name for f in flat})
    if classes and all(re.fullmatch(_SPLITS, name) for name in classes):
        raise UserError(
            f"{flag}: {listing(classes)} would be the classes: there is no level of classes. Put the images "
            f"into {folder}/SPLIT/CLASS/."
        )
    splits: Files = {}
    for file in deep or flat:
        splits.setdefault(file.parent.parent.name if deep else "train", []).append(file)
    used = {*deep, *flat}
    notes, rest = [], [f for f in files if f not in used]
    if rest:
        kinds = listing(f"{n} *{suffix}" for suffix, n in Counter(f.suffix for f in rest).items())
        notes.append(f"Files that are no image of a class are left out, {kinds}: {_names(folder, rest, 5)}.")
    parents = {parent for file in used for parent in file.parents}
    if empty := [f for f in shown if f.is_dir() and f not in parents]:
        notes.append(f"A folder without an image is no class: {_names(folder, empty, 20)}.")
    return dict(sorted(splits.items(), key=lambda item: (item[0] != "train", item[0]))), notes


def read_heads(
    flag: str, folder: Path, files: Mapping[str, Sequence[Path]], channels: int, bad: str
) -> tuple[Files, Counter[tuple[int, int]], list[str]]:
    """(images that are whole, by split; how many have which size; notes).

    Raises:
      UserError: an image cannot be read, unless `bad` is `skip`; a split in which none can.
    """
    every = [file for group in files.values() for file in group]
    with ThreadPoolExecutor(READERS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of an image that is large and yet can be read
        heads = dict(zip(every, pool.map(functools.partial(head_of, channels=channels), every), strict=True))
    broken = [file for file, head in heads.items() if head.fault]
    shown = listing((f"{f.relative_to(folder)} ({heads[f].fault})" for f in broken), 20)
    if broken and bad != "skip":
        raise UserError(
            f"{flag}: {len(broken)} of {len(every)} images cannot be read: {shown}. Mend or remove them, or "
            "give --bad_examples=skip to leave them out."
        )
    whole = {split: [f for f in group if not heads[f].fault] for split, group in files.items()}
    if none := [split for split, group in whole.items() if not group]:
        raise UserError(f"{flag}: split {none[0]} has no image that can be read: {shown}.")
    notes = []
    if broken:
        notes.append(f"{len(broken)} of {len(every)} images are left out (--bad_examples=skip): {shown}.")
    if turned := [file for file, head in heads.items() if head.turned and not head.fault]:
        notes.append(
            f"{len(turned)} images carry a camera's note (EXIF) to be shown turned, which is not done (nor "
            f"by Keras): {_names(folder, turned, 5)}."
        )
    return whole, Counter(head.size for head in heads.values() if not head.fault), notes


def head_of(file: Path, channels: int = 3) -> Head:
    """What the beginning of an image file tells, and whether it is whole."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            size, kind = (image.height, image.width), image.format or ""
            turned = kind in ("JPEG", "MPO") and _turned(image)  # of a PNG all would be read for it
    except UnidentifiedImageError:
        return Head(fault="no image" if file.stat().st_size else "empty")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Head(fault=" ".join(str(error).split())[:100])
    if kind not in _FORMATS:
        return Head(fault=f"is {kind}; JPEG, PNG, BMP and GIF are read")
    if channels == 1 and kind in ("GIF", "BMP"):
        return Head(fault=f"is {kind}, which cannot be made grey; leave channels=1 out, or convert it")
    return Head(size, turned, "cut off" if kind in _END and not _whole(file, _END[kind]) else "")


def _turned(image: Any) -> bool:
    with contextlib.suppress(Exception):  # what a camera notes may be any bytes
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    return False


def _whole(file: Path, end: bytes) -> bool:
    """Whether what a file has to end with is there; some programs write something behind it."""
    with open(file, "rb") as stream:
        stream.seek(max(file.stat().st_size - 1024, 0))
        if end in stream.read():
            return True
    data = file.read_bytes()  # seldom; of a JPEG the small picture in its head has an end, too
    return data.rfind(end) > data.rfind(b"\xff\xda")


def _names(folder: Path, paths: Sequence[Path], most: int) -> str:
    return listing((str(path.relative_to(folder)) for path in sorted(paths)), most)
