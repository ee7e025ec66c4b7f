"""`.safetensors`, through the `safetensors` library. Names as stored."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from trainer.errors import UserError
from trainer.readers import buffers
from trainer.readers.source import Spec, WeightsFile, damaged, looks_like_torch, refuse, split_state

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def looks_like(head: bytes) -> bool:
    """Whether a file begins as a safetensors file does: the header's length, then its `{`."""
    return len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\x00\x00"


def open_safetensors(place: Path, path: str, flag: str) -> WeightsFile:
    """Opens a `.safetensors` file.

    Raises:
      UserError: the library is not installed, the file is damaged, or a dtype NumPy does not have.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise refuse(
            flag, path, "is a .safetensors file. Reading it needs: pip install safetensors"
        ) from error
    specs: dict[str, Spec] = {}
    try:
        # The library checks the header; the bytes are read here, as its map of the file stays in memory.
        with safe_open(str(place), framework="numpy") as file:
            names = file.offset_keys() if hasattr(file, "offset_keys") else file.keys()
            metadata = file.metadata() or {}
            for name in names:
                part = file.get_slice(name)
                specs[name] = Spec(tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), ""))
                if not specs[name].dtype:
                    raise refuse(flag, path, f"{name!r} is {part.get_dtype()}, which NumPy has not.")
        starts = _starts(place)
    except UserError:
        raise
    except Exception as error:
        raise damaged(flag, path, error) from error
    kept, ignored = split_state(specs)
    # Hugging Face's writers state the format.
    torch = looks_like_torch(specs) or metadata.get("format") == "pt"

    def fetch(name: str) -> AbstractContextManager[IO[bytes]]:
        return buffers.opened(place, starts[name])

    return WeightsFile("safetensors file", path, kept, ignored, flag, fetch, torch=torch, neutral=True)


def _starts(place: Path) -> dict[str, int]:
    """Where each array begins in a file whose header has been checked."""
    with place.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }
