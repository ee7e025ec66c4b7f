"""Where the models and data sets lie that come with the program: in a checkout, or when installed."""

from pathlib import Path


def folder(name: str) -> Path:
    """The folder `models` or `datasets`: inside the installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name
