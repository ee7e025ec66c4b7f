"""Two worker processes on data of one's own make the run of one process, whichever way the data are drawn."""

import pytest

from examples import own_data
from tests.devices.test_agreement import assert_close, ended, two_workers
from tests.support import runs

COMMON = (
    "--batch_size=4",
    "--accumulate=2",
    "--train_for=60",
    "--log_every=20",
    "--eval_every=20",
    "--save_every=30",
    "--precision=float64",
    "--group=.* adam 1e-3",
)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    own_data.write(folder)
    return f"{folder}/records(features='image: png[28,28,1], label: int64')"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["records", "words"])
def test_streamed(kind, records, tmp_path):
    own = {
        "records": ("--model=mnist_mlp", f"--dataset={records}"),
        # Each worker pads its own rows only, and all must come to one length.
        "words": (
            "--model=tests.support.own_pipelines",
            "--dataset=tests.support.own_pipelines.words",
            "--pad=tokens multiple=2",
            "--train_split=train[:90%]",
            "--eval_split=train[90%:]",
        ),
    }[kind]
    flags = (*COMMON, *own, "--data_residency=streaming")
    with two_workers(*flags, f"--workdir={tmp_path / 'two'}") as both:
        ends = [ended(process) for process in both]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert runs.main(tmp_path / "one", *flags) == 0
    assert_close(tmp_path / "two", tmp_path / "one", 60)
