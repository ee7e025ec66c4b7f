"""Flags from `argv` and flagfiles, and back."""

import dataclasses

import pytest

from trainer.flags.command_line import flagfile, parse
from trainer.flags.config import Config


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
