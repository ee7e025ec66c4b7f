"""What counts where a flag is given more than once, and values that no flag can mean."""

import os
import threading

import pytest

from trainer.errors import UserError
from trainer.flags.command_line import flagfile, parse
from trainer.flags.config import Config


def refused(*arguments):
    with pytest.raises(UserError) as caught:
        parse(["run.py", *arguments])
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    """A function that writes a flagfile and returns the flag that names it."""

    def write(*lines, name="run.flags"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return f"--flagfile={tmp_path / name}"

    return write


# --- given twice ---


def test_two_values_on_the_command_line_are_refused():
    assert refused("--seed=3", "--keep=2", "--seed=4") == (
        "--seed=4: given before as --seed=3. Give it once."
    )
    assert "given before" in refused("--jit_compile", "--nojit_compile")
    assert "given before" in refused("--seed=3", "--seed=")


def test_two_values_in_one_file_are_refused_with_their_lines(file, tmp_path):
    message = refused(file("--seed=3", "", "--seed=4"))
    assert f"--seed=4 ({tmp_path / 'run.flags'}:3)" in message
    assert f"--seed=3 ({tmp_path / 'run.flags'}:1)" in message


def test_the_same_value_twice_is_no_fault():
    assert parse(["run.py", "--seed=3", "--seed=3", "--jit_compile", "--jit_compile=true"]).seed == 3


def test_the_command_line_has_the_last_word_wherever_it_stands(file):
    given = file("--seed=1", "--batch_size=8", "--jit_compile")
    for arguments in (["--seed=2", given], [given, "--seed=2"]):
        config = parse(["run.py", *arguments, "--nojit_compile"])
        assert (config.seed, config.batch_size, config.jit_compile) == (2, 8, False)


def test_a_file_has_the_last_word_over_those_it_includes_and_the_later_of_two_counts(file):
    inner = file("--seed=1", "--keep=1", "--batch_size=1", name="inner")
    outer = file("--seed=2", inner, name="outer")
    later = file("--keep=3", name="later")
    config = parse(["run.py", outer, later])
    assert (config.seed, config.keep, config.batch_size) == (2, 3, 1)
    assert parse(["run.py", later, file("--keep=4", name="last")]).keep == 4


def test_an_empty_value_stands_for_the_default(file):
    given = file(
        "--seed=1", "--clip_norm=2", "--init_from=/x", "--train_split=a", "--jit_compile", "--ema=0.9"
    )
    unset = ["--seed=", "--clip_norm=", "--init_from=", "--train_split=", "--jit_compile=", "--ema="]
    assert parse(["run.py", given, *unset]) == Config()


def test_an_empty_value_of_a_flag_that_repeats_is_refused(file):
    assert "--group=: is empty" in refused("--group=")
    assert "run.flags:1): is empty" in refused(file("--no_decay= "))


# --- what is no flag, or no value ---

COMMAND_LINE = {
    "--nojit_compile=1": ("--nojit_compile=1: takes no value", "--jit_compile=true or =false"),
    "--epochs=3": ("--epochs: no such flag", "--train_for=3epochs"),
    "--max-steps=3": ("--max-steps: no such flag", "--train_for=500steps"),
    "--lr=0.1": ("--lr: no such flag", "third column of --group"),
    "--learning_rate=0.1": ("third column of --group",),
    "--weight_decay=0.1": ("adamw(weight_decay=1e-4)",),
    "--gpus=2": ("--devices=GPU:0,GPU:1",),
    "--resume": ("the same command with the same --workdir goes on",),
    "--fp16": ("--precision=mixed_bfloat16",),
    "-h": ("Here it is --help",),
    "--batch_size=\uff13\uff12": ("--batch_size=\uff13\uff12", "digits 0 to 9"),
    "--clip_norm=\uff11.5": ("--clip_norm", "digits 0 to 9"),
    "--batch_size=1_0": ("--batch_size=1_0", "digits 0 to 9"),
    "--workdir= ": ("--workdir= : is blank",),
    "--group= \t": ("is empty",),
    "--model=  ": ("--model=  : is blank",),
    "--workdir=~nosuchuser/x": ("--workdir=~nosuchuser/x", "no user ~nosuchuser"),
    "--workdir=a\udcffb": (r"--workdir=a\udcffb", "not UTF-8"),
    "--dataset=a\x1bb": (r"--dataset=a\x1bb", "cannot be printed"),
    "--workdir=a\nb": ("cannot be printed",),
    "--data_dir=xx://y": ("--data_dir=xx://y", "no such kind of place", "gs://"),
    "--workdir=gs://bucket/run": ("--workdir=gs://bucket/run", "only a path on this machine"),
    "--workdir=" + "a" * 300: ("cannot be used: File name too long",),
    "--group=" + "a" * 30_000: ("has 30,000 letters",),
    "--data_dir=/etc/passwd": ("--data_dir=/etc/passwd: /etc/passwd is no directory",),
    "--plan_out=/dev/null": ("--plan_out=/dev/null: is there and is no file",),
    "--workdir=/etc/passwd/run": ("/etc/passwd is no directory",),
    "--seed=" + "9" * 5000: ("(5,00", "takes a whole number"),
}


@pytest.mark.parametrize("argument", COMMAND_LINE, ids=[repr(a)[:30] for a in COMMAND_LINE])
def test_what_no_flag_can_mean(argument):
    message = refused(argument)
    assert all(word in message for word in COMMAND_LINE[argument]), message
    assert len(message) < 1200 and message.replace("\n", "").isprintable()


def test_a_value_that_starts_with_dashes_is_no_value():
    assert "--workdir: no value" in refused("--workdir", "--seed=3")
    assert parse(["run.py", "--workdir", "runs/a", "--jit_compile", "--seed", "3"]).seed == 3


def test_numbers_from_python_that_cannot_even_be_written_out():
    with pytest.raises(UserError, match=r"--batch_size: a number of 16,\d+ bits"):
        Config(batch_size=10**5000).check()


def test_a_line_end_in_a_rule_is_a_blank_in_the_flagfile_that_repeats_the_run(tmp_path):
    config = Config(group=["a\n  frozen", ".* sgd\t0.1"])
    config.check()
    (tmp_path / "flags.txt").write_text(flagfile(config))
    again = parse(["run.py", f"--flagfile={tmp_path / 'flags.txt'}"])
    assert [rule.split() for rule in again.group] == [rule.split() for rule in config.group]


def test_a_flagfile_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    (tmp_path / "mnist.flags").touch()
    assert "Did you mean mnist.flags?" in refused(f"--flagfile={tmp_path / 'mist.flags'}")
    assert "Give the path of a file." in refused(f"--flagfile={tmp_path / 'nowhere/mist.flags'}")


# --- flagfiles that could be read for ever ---


def test_flagfiles_that_are_no_files_are_refused_at_once(tmp_path, file):
    os.mkfifo(tmp_path / "fifo")
    for path in ("/dev/zero", "/dev/random", tmp_path / "fifo", tmp_path, "/dev/stdin"):
        assert "cannot be read: " in refused(f"--flagfile={path}"), path
    assert "not a file, but" in refused(file(f"--flagfile={tmp_path / 'fifo'}"))
    (tmp_path / "large").write_text("#" * (1 << 21))
    assert "more than 1,048,576 bytes" in refused(f"--flagfile={tmp_path / 'large'}")
    assert "no such user" in refused("--flagfile=~nosuchuser/x").lower() or "home" in refused(
        "--flagfile=~n/x"
    )


def test_flagfiles_within_each_other_and_side_by_side_are_bounded(tmp_path, file):
    for number in range(1500):
        (tmp_path / f"deep{number}").write_text(f"--flagfile={tmp_path}/deep{number + 1}\n")
    assert "deep20: at most 200 flagfiles are read, and 20 within each other" in refused(
        f"--flagfile={tmp_path}/deep0"
    )
    (tmp_path / "leaf").write_text("")
    assert "at most 200" in refused(file(*[f"--flagfile={tmp_path}/leaf"] * 300))
    lines = [f"--flagfile={tmp_path}/leaf"] * 100
    assert parse(["run.py", file(*lines, "--seed=5")]).seed == 5


def test_signals_are_for_the_main_thread():
    from trainer.signals import stopping

    errors = []

    def enter():
        try:
            with stopping():
                pass
        except UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=enter, name="worker")
    thread.start()
    thread.join()
    assert "signals=True" in errors[0] and "worker" in errors[0]
