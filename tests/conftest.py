"""Two logical CPUs stand in for two GPUs in every test; TensorFlow's start-up noise is quiet."""

import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`slow(but=N)`: the first N cases of a test are not slow."""
    seen: Counter[tuple[Path, str]] = Counter()
    for item in items:
        mark = item.get_closest_marker("slow")
        if mark and mark.kwargs:
            case = item.path, getattr(item, "originalname", item.name)
            seen[case] += 1
            if seen[case] <= mark.kwargs["but"]:
                item.own_markers.remove(mark)


@pytest.fixture(autouse=True, scope="module")
def module_as_before():
    """What the fixtures of a module leave behind ends with it."""
    from trainer.run.surroundings import as_before

    with as_before():
        yield


@pytest.fixture(autouse=True)
def as_before():
    """Keras's settings and all generators are for the next test what they were for this one."""
    from trainer.run.surroundings import as_before

    with as_before():
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS directory in which the bundled digits are prepared."""
    from trainer.data.sources.tfds import open_dataset

    path = tmp_path_factory.mktemp("data")
    open_dataset("digits", str(path)).prepare()
    return path


@pytest.fixture(scope="session")
def data(data_dir):
    """The flag that names it."""
    return f"--data_dir={data_dir}"
