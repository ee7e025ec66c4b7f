"""What `pip install .` brings: one package, its models and data, a command, and types."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import numpy as np

import trainer


def watch(record: dict[str, object]) -> object:
    return trainer.STOP if record["step"] == 20 else None


images = np.zeros([64, 28, 28, 1], "uint8")
run = trainer.Run(
    model="mnist_mlp(hidden=16)",
    dataset=trainer.Arrays(train={"image": images, "label": np.zeros([64], "int64")}),
    eval_split="train",
    group=[".*/b frozen", ".* adam constant(1e-3)"],
    batch_size=32,
    train_for="30epochs",
    log_every=10,
    clip_norm=1.0,
)
plan: trainer.Plan = run.plan()
print(plan, plan.rows[0]["name"])
result: trainer.Result = run.train(on_log=watch)
metrics: dict[str, float] = run.evaluate()
weights: dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"] = run.weights()
print(result.step, result.stopped, sorted(metrics), sorted(weights)[0])
try:
    trainer.Run(batch_size=0)
except trainer.UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed package, as site-packages has it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, as a build leaves a folder behind
    for name in ("trainer", "models", "datasets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(site, cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(site), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_one_package_with_everything_in_it(site):
    top = {path.name for path in site.iterdir()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"trainer"}
    inside = {str(p.relative_to(ROOT)) for p in (ROOT / "trainer").rglob("*.py")}
    bundled = {
        f"trainer/{p.relative_to(ROOT)}" for f in ("models", "datasets") for p in (ROOT / f).rglob("*.py")
    }
    installed = {str(p.relative_to(site)) for p in site.rglob("*.py")}
    assert installed == inside | bundled
    assert (site / "trainer/py.typed").exists() and (site / "trainer/datasets/digits/digits.csv.gz").exists()


@pytest.mark.slow
def test_a_strict_type_checker_passes_a_users_script_which_runs(site, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    checked = python(
        site, tmp_path, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(script)
    )
    own = [line for line in checked.stdout.splitlines() if line.startswith("script.py")]
    assert own == [], checked.stdout
    done = python(site, tmp_path, str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "20 True ['accuracy', 'examples', 'loss'] hidden1/b",
        "--batch_size=0: must lie from 1 to 2147483648.",
    ]


@pytest.mark.slow
def test_a_wrong_keyword_is_a_type_error(site, tmp_path):
    script = tmp_path / "script.py"
    script.write_text('import trainer\n\ntrainer.Run(modl="x", batch_size="3")\n')
    checked = python(
        site, tmp_path, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(script)
    )
    assert (
        'Unexpected keyword argument "modl"' in checked.stdout
        and 'type "str"; expected "int"' in checked.stdout
    )


@pytest.mark.slow
def test_the_command_is_run_py(site, tmp_path):
    here = python(ROOT, tmp_path, str(ROOT / "run.py"), "--help")
    there = python(site, tmp_path, "-m", "trainer", "--help")
    assert here.returncode == there.returncode == 0
    assert here.stdout.splitlines()[1:] == there.stdout.splitlines()[1:]
    entry = next(site.glob("*.dist-info")) / "entry_points.txt"
    assert "trainer = trainer.__main__:main" in entry.read_text()


@pytest.mark.slow
def test_a_users_own_models_come_first_and_datasets_stays_importable(site, tmp_path):
    (tmp_path / "models").mkdir()
    own = "import keras\nfrom trainer.model.classifier import loss, preprocess\n"
    own += (
        "def build(width=4):\n    return keras.Sequential([keras.Input([28, 28, 1]), keras.layers.Flatten(), "
    )
    own += "keras.layers.Dense(10, name='mine')])\n"
    (tmp_path / "models" / "mnist_cnn.py").write_text(own)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("theirs = True\n")
    code = (
        "import datasets, trainer\n"
        "flags = {'dataset': 'digits', 'data_dir': 'data', 'train_for': 5, 'group': ['.* sgd 1']}\n"
        "run = trainer.Run(model='mnist_cnn', **flags)\n"
        "print(datasets.theirs, [row['name'] for row in run.plan().rows])\n"
    )
    done = python(site, tmp_path, "-c", code)
    assert done.stdout.strip() == "True ['mine/kernel', 'mine/bias']", done.stderr
