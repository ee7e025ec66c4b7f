"""Images: those that an evaluation returned, as text that a record, a page and a browser can hold."""

import base64
import io
import re
from typing import Any

import numpy as np

MOST = 1 << 21  # numbers of an image
_SOURCE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def is_image(array: np.ndarray) -> bool:
    """Whether an array is meant as an image: uint8 [height, width, 1 or 3]."""
    grey_or_coloured = array.ndim == 3 and array.shape[2] in (1, 3)
    return array.dtype == np.uint8 and grey_or_coloured and 0 < array.size <= MOST


def png(image: np.ndarray) -> bytes:
    """An image, uint8 [height, width, 1 or 3], as a file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="png")
    return file.getvalue()


def source(file: bytes) -> str:
    """What `png` gave, as the `src` of an element of a page."""
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def is_source(text: Any) -> bool:
    """Whether something is text as `source` makes it, and nothing else."""
    return isinstance(text, str) and bool(_SOURCE.fullmatch(text))
