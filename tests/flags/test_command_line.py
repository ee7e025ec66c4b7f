"""Flags from `argv` and flagfiles, and back."""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.flags.command_line import define, flagfile, parse
from trainer.flags.config import TOPICS, Config


def test_defaults_are_those_of_the_config():
    assert parse(["run.py"]) == Config()


def test_repeated_flags_add_up_in_the_order_written_and_single_ones_end_with_the_last(tmp_path):
    file = tmp_path / "base.flags"
    file.write_text("# a comment\n\n--group=b frozen\n--group=c frozen\n--seed=1\n--batch_size=8\n")
    config = parse(["run.py", "--group=a frozen", f"--flagfile={file}", "--group=d frozen", "--seed=2"])
    assert config.group == ["a frozen", "b frozen", "c frozen", "d frozen"]
    assert (config.seed, config.batch_size) == (2, 8)


def test_an_included_flagfile(tmp_path):
    inner, outer = tmp_path / "inner.flags", tmp_path / "outer.flags"
    inner.write_text("--seed=5\n")
    outer.write_text(f"--flagfile={inner}\n--batch_size=8\n")
    config = parse(["run.py", "--flagfile", str(outer)])
    assert (config.seed, config.batch_size) == (5, 8)


def test_the_flagfile_of_a_config_gives_it_back(tmp_path):
    values = {
        "model": "mnist_cnn(filters=3, dense=4)",
        "group": [r"conv(\d+)/.*  adam(beta_1=0.8)  cosine(1e-3, warmup=5%)  name=a", ".* frozen"],
        "init_from": "/some/where",
        "init_rename": [r"conv(.*) -> encoder/conv\1", "a -> b"],
        "clip_norm": 0.1,
        "ema": 0.999,
        "layer_decay": 0.75,
        "jit_compile": True,
        "seed": 7,
    }
    config = dataclasses.replace(Config(), **values)
    file = tmp_path / "flags.txt"
    file.write_text(flagfile(config))
    assert parse(["run.py", f"--flagfile={file}"]) == config


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["run.py", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{field.name}: {field.metadata['help']}" in shown for field in dataclasses.fields(Config))


def test_help_has_every_topic_with_an_example_that_parses(capsys):
    with pytest.raises(SystemExit):
        parse(["run.py", "--help"])
    shown = capsys.readouterr().out
    topics = {field.metadata["topic"] for field in dataclasses.fields(Config)}
    assert topics == set(TOPICS)
    for topic, example in TOPICS.items():
        assert f"\n{topic}, such as {example}\n" in shown
        names = [flag.partition("=")[0].removeprefix("--") for flag in shlex.split(example)]
        own = {f.name for f in dataclasses.fields(Config) if f.metadata["topic"] == topic} | {"mode"}
        assert set(names) <= own, topic
        define()(["run.py", *shlex.split(example)])


def test_help_imports_no_tensorflow():
    code = "import sys; from trainer.__main__ import main\ntry: main(['run.py', '--help'])\n"
    code += "except SystemExit: print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False", done.stderr
