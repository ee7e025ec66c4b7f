"""Inputs with something wrong in them, made from a random generator."""

# ruff: noqa: E501 (lists of bad values are no prose)

import os
import random
from collections.abc import Callable
from pathlib import Path

from tests.support.bad_case import ALL, BASE, Case, flags
from tests.support.bad_modules import builders, modules, schedules


def make(chance: random.Random, folder: Path, data_dir: Path, alone: bool = True) -> Case:
    """The case of a seeded generator; its files are written into `folder`, the working directory.

    `alone` lets it be one that needs a process of its own.
    """
    kinds: list[Callable[[random.Random, Path, Path], Case]]
    kinds = [one_flag, one_flag, several_flags, flagfiles, rules, rules, arguments, modules, modules, modules]
    kinds += [schedules, builders, data, weights, modes]
    kinds += [environments] if alone else []
    return chance.choice(kinds)(chance, folder, data_dir)


DIGITS = str.maketrans("0123456789", "０１２３４５６７８９")
VALUES = [
    "", " ", "\t", "0", "-1", "1", "2", "0.5", "1.5", "nan", "inf", "-inf", "1e300", "1e18", "1e-300", "1e999",
    "9" * 5000, "-" + "9" * 5000, "0." + "1" * 5000, "1_0", "0x10", "3".translate(DIGITS), "0.1".translate(DIGITS),
    "true", "True", "maybe", "None", "none", "[]", "[1,2]", "{}", "()", "x", "é", "日本", "\u202etxt", "a b",
    "\x1b[31mred\x1b[0m", "\x07", "\r", "\n", "a\nb", "\udcff", "\ufeff", "~nosuchuser/x", "~", "/", ".", "..",
    "/dev/zero", "/dev/null", "/dev/full", "/etc/passwd", "/etc/passwd/x", "/proc/self/mem", "/nowhere/at/all",
    "xx://y", "gs://", "file:///tmp", "http://x", "a" * 300, "a/" * 3000, "a" * 30_000, "fifo", "folder", "file",
    "(a+)+b", "(", ")", "*", "\\", "\\1", "'", '"', "'x'", "=", "--seed=3", "-", "--", "3epochs", "50%", "5steps",
    "0epochs", "1e18epochs", "1e12", "adam", "train", "train[:0]", "train[:", "test+train", "all", "os.path",
    "sys.exit(0)", "__import__('os')", "models.mnist_mlp", "this", "antigravity.x", "mnist_mlp.py", "a.b.c" * 500,
    "CPU:0", "CPU:9", "GPU:0", "best", "newest", "1", "999999999999", "raw", "ema", "loss", "accuracy:min",
]  # fmt: skip
NAMES = (
    "mode model group no_decay layer_decay dataset fallback_dataset data_dir manual_dir data_residency train_split "
    "eval_split batch_size train_for log_every eval_every save_every seed precision clip_norm accumulate ema "
    "on_nonfinite jit_compile deterministic strategy devices virtual_devices communication init_from init_only "
    "init_skip init_rename init_cast init_weights init_adapt workdir keep keep_best accept_plan_change plan_out "
    "checkpoint weights export_to verify_steps flagfile help undefok epochs lr gpus resume grup nojit_compile"
).split()


def litter(folder: Path) -> None:
    """What a path may lead to: `fifo`, `folder` and `file`."""
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "file").write_text("text\n")


def value_for(chance: random.Random, name: str) -> str:
    """A bad value; of a flag that names what is written, one that leads nowhere outside the working directory."""
    if name not in ("workdir", "data_dir", "plan_out", "export_to"):
        return chance.choice(VALUES)
    inside = [v for v in VALUES if v not in ("", ".", "..", "~") and not v.startswith("/")]
    return chance.choice([*inside, "/etc/passwd/x", "/dev/null/x", "file/x", "folder"])


def one_flag(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """A right command, but for one value."""
    litter(folder)
    name = chance.choice(NAMES)
    value = value_for(chance, name)
    written = chance.choice(
        [f"--{name}={value}"] * 6 + [f"--{name}", f"-{name}={value}", f"--no{name}={value}"]
    )
    given = [f for f in flags(data_dir) if not f.startswith(f"--{name}=")]
    plain = name not in ("mode", "help", "workdir")
    return Case("one flag", [*given, ALL, written], trains=plain)


def several_flags(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """A right command, with many a flag wrong, doubled, cut or of no use."""
    litter(folder)
    given = [*flags(data_dir), ALL]
    for _ in range(chance.randrange(1, 6)):
        name = chance.choice(NAMES[1:])
        written = f"--{name}={value_for(chance, name)}"
        way = chance.randrange(4)
        if way == 0:
            given.append(written)
        elif way == 1:
            given.insert(chance.randrange(len(given)), written[: chance.randrange(len(written))])
        elif way == 2:
            given[chance.randrange(len(given))] += chance.choice(VALUES)
        else:
            given.append(chance.choice(given))
    return Case("several flags", given, trains=not any("help" in flag for flag in given))


def flagfiles(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """The right flags in a file, with lines that are none."""
    litter(folder)
    lines = [*flags(data_dir), ALL]
    for _ in range(chance.randrange(1, 4)):
        name = chance.choice(NAMES)
        value = value_for(chance, name)
        line = chance.choice(
            [f"--{name}={value}", f"--{name} {value}", f"{name}={value}", f"  # {value}", f"--seed=3 --{name}={value}",
             value, f"--flagfile={chance.choice(['run.flags', 'deep0', 'folder', 'fifo', '/dev/zero', value])}"]
        )  # fmt: skip
        lines.insert(chance.randrange(len(lines) + 1), line)
    for number in range(1500):
        (folder / f"deep{number}").write_text(f"--flagfile=deep{number + 1}\n")
    (folder / "deep1500").write_text("--seed=3\n")
    data = "\n".join(lines).encode("utf-8", "surrogateescape")
    if chance.random() < 0.2:
        data = data[: chance.randrange(len(data))] + chance.choice([b"\0", b"\xff\xfe", b"\r\n", b""]) + data
    (folder / "run.flags").write_bytes(data)
    return Case("flagfile", ["--flagfile=run.flags"], trains=b"help" not in data and b"mode" not in data)


PATTERNS = [
    ".*", "hidden1/.*", ".*/w", ".*/(w|b)", "logits/.*", "(a+)+b", "(h|h|hi)*z", "(.*)*x", "[", "(", "*", "(?P<x>a)",
    "(?i)HIDDEN1/.*", "hidden1", "a{99999999999}", "(" * 500 + ")" * 500, "\\", "(?=.*)w", ".*" * 30 + "x", "(x?){60}x",
    "hidden[[1]", "(?R)", "\\d+", "^.*$", "|", "", "frozen", "a" * 3000,
]  # fmt: skip
OPTIMIZERS = (
    "adadelta adafactor adagrad adam adamax adamw ftrl lamb lion muon nadam rmsprop sgd adm frozen loss_scale "
    "multioptimizer optimizer ADAM keras.optimizers.Adam os.path.join"
).split()
ARGUMENTS = (
    "beta_1 beta_2 rho epsilon momentum nesterov amsgrad centered weight_decay initial_accumulator_value "
    "learning_rate_power l1_regularization_strength beta clip_threshold beta_2_decay epsilon_1 relative_step "
    "ns_steps exclude_layers muon_a adam_lr_ratio learning_rate clipnorm use_ema name betas eps"
).split()
LITERALS = [
    "0", "-1", "1", "2.0", "0.5", "0.999", "5.0", "True", "False", "None", "'x'", "[]", "['(a+)+b']", "{}", "1e999",
    "-1e999", "1e-300", "1e38", "1e300", "1j", "b'x'", "3epochs", "50%", "9" * 5000, "0x" + "f" * 5000, "(1,2)", "...",
    "...x", "__import__('os')", "lambda: 0", "x", "-" * 3000 + "1", "(" * 100 + "1" + ")" * 100, "0.1".translate(DIGITS),
    "'" + "\\'" * 5000, "*[1]", "**{}", "1 if 1 else 2", "[[1e-2]]", "nan",
]  # fmt: skip
SCHEDULES = [
    "constant",
    "linear",
    "cosine",
    "one_cycle",
    "exponential",
    "polynomial",
    "inverse_sqrt",
    "piecewise",
]
SCHEDULE_ARGUMENTS = (
    "rate peak initial warmup end decay_steps decay_rate staircase power timescale boundaries values start length step"
).split()


def call(chance: random.Random, names: list[str], arguments: list[str]) -> str:
    """`name`, or `name(argument=value, ...)`."""
    name = chance.choice(names)
    if chance.random() < 0.3:
        return name
    given = [f"{chance.choice(arguments)}={chance.choice(LITERALS)}" for _ in range(chance.randrange(3))]
    if chance.random() < 0.4:
        given.insert(0, chance.choice(LITERALS))
    return f"{name}({', '.join(given)}{chance.choice([')'] * 9 + [''])}"


def rules(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """Rules that may be none."""
    given = []
    for _ in range(chance.randrange(4)):
        schedule = chance.choice(["0.1", *LITERALS, call(chance, SCHEDULES, SCHEDULE_ARGUMENTS)])
        optimizer = chance.choice(["sgd", "adam", "frozen", call(chance, OPTIMIZERS, ARGUMENTS)])
        columns = [chance.choice(PATTERNS), optimizer, schedule]
        for option in ("name", "from", "until", "every", "loss"):
            if chance.random() < 0.15:
                columns.append(f"{option}={chance.choice(VALUES)}")
        if chance.random() < 0.1:
            chance.shuffle(columns)
        given.append("--group=" + "  ".join(columns[: chance.choice([1, 2, 3, 9, 9, 9, 9])]))
    more = [f"--no_decay={chance.choice(PATTERNS)}"] if chance.random() < 0.2 else []
    last = [ALL] if chance.random() < 0.7 else []
    return Case("rules", [*flags(data_dir), *given, *last, *more])


def arguments(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """Arguments of an optimizer, a schedule or a model, each of which exists."""
    optimizer, schedule, model = "sgd", "0.1", BASE["model"]
    way = chance.randrange(3)
    if way == 0:
        optimizer = call(chance, OPTIMIZERS[:13], ARGUMENTS[:22])
    elif way == 1:
        schedule = call(chance, SCHEDULES, SCHEDULE_ARGUMENTS)
    else:
        names = ["hidden", "classes", "filters", "dense", "dropout", "batch_norm"]
        model = call(chance, ["mnist_mlp", "mnist_cnn"], names)
    return Case("arguments", [*flags(data_dir, model=model), f"--group=.* {optimizer} {schedule}"])


def data(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """Names of data that are none, and folders of data in which something else lies."""
    litter(folder)
    own = folder / "broken"
    own.mkdir()
    names = ["digits", "digit", "digits/x", "digits:9", "digits/", "/", ":", "mnist/", "no.such.thing", "os.path", "x" * 300,
             "digits*", "../digits", "digits:1.0.0/x=3", "tensorflow_datasets.core.DatasetBuilder", "(a+)+b"]  # fmt: skip
    values = {
        "dataset": chance.choice(names),
        "data_dir": str(chance.choice([data_dir, own, folder / "file", folder / "fifo"])),
    }
    for prepared in data_dir.glob("digits/*"):
        target = own / "digits" / prepared.name
        target.mkdir(parents=True)
        for file in prepared.iterdir():
            content = file.read_bytes()
            if chance.random() < 0.3:
                content = content[: chance.randrange(len(content))] + chance.randbytes(chance.randrange(20))
            (target / file.name).write_bytes(content)
    if chance.random() < 0.3:
        values["fallback_dataset"] = chance.choice(names)
    if chance.random() < 0.3:
        values["manual_dir"] = chance.choice(["file", "fifo", "folder", "/nowhere"])
    for split in ("train_split", "eval_split"):
        if chance.random() < 0.3:
            values[split] = chance.choice(
                ["train[:", "x", "train[1:0]", "train[:１]", "train+", "all", "train[:50%]", "none"]
            )
    return Case("data", [*flags(data_dir, **values), ALL])


def weights(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """What `--init_from` leads to is no file of weights."""
    litter(folder)
    heads = [
        b"\x89HDF\r\n\x1a\n",
        b"PK\x03\x04",
        b"\x93NUMPY",
        b"\x80\x04",
        b"{",
        b"\x10\0\0\0\0\0\0\0{}",
        b"",
    ]
    (folder / "w").write_bytes(chance.choice(heads) + chance.randbytes(chance.randrange(400)))
    given = [f"--init_from={chance.choice(['w', 'fifo', 'folder', 'file', '/dev/zero', 'none', '~', '/'])}"]
    for flag in ("init_only", "init_skip", "init_rename", "init_adapt"):
        if chance.random() < 0.2:
            right = chance.choice(["", " -> x", " -> \\9", " mean()", " keep_dims", " sum_channels(x=1)"])
            given.append(f"--{flag}={chance.choice(PATTERNS)}{right}")
    mode = chance.choice(["", "", "inspect", "plan"])
    return Case("weights", [*flags(data_dir, mode=mode), ALL, *given], trains=not mode)


def modes(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """A mode that has nothing to work on, or is asked for what it does not do."""
    litter(folder)
    mode = chance.choice(["plan", "evaluate", "inspect", "export", "verify_resume", "verify_distribution"])
    given = {"mode": mode, "workdir": chance.choice(["work", "file", "folder", "fifo", "/etc/passwd"])}
    for name in ("plan_out", "export_to", "checkpoint", "weights", "verify_steps", "data_dir"):
        if chance.random() < 0.25:
            given[name] = value_for(chance, name)
    return Case(f"mode: {mode}", [*flags(data_dir, **given), ALL], trains=False)


SETTINGS = [
    {"KERAS_BACKEND": "jax"}, {"KERAS_BACKEND": "x\x1b[31m"}, {"KERAS_BACKEND": ""}, {"TF_CONFIG": "{"},
    {"TF_CONFIG": "[]"}, {"TF_USE_LEGACY_KERAS": "1"}, {"HOME": "/dev/null"}, {"TMPDIR": "/dev/null"}, {"LANG": "C"},
    {"PYTHONIOENCODING": "ascii"}, {"COLUMNS": "0"}, {"TERM": "dumb"}, {"TFDS_DATA_DIR": "/etc/passwd"}, {"HOME": ""},
    {"PYTHONOPTIMIZE": "2"}, {"PYTHONWARNINGS": "error"}, {"CUDA_VISIBLE_DEVICES": "x"}, {"NO_COLOR": "1"},
]  # fmt: skip
BEFORE = [
    "ulimit -v 500000;", "ulimit -v 1500000;", "ulimit -v 3000000;", "ulimit -v 6000000;", "ulimit -n 8;",
    "ulimit -n 40;", "ulimit -f 0;", "ulimit -f 20;", 'rmdir "$PWD";', "cd gone; rmdir ../gone;",
]  # fmt: skip
AFTER = ["2>&-", ">&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"]


def environments(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """A right command where something around it is wrong."""
    way = chance.randrange(4)
    given = [*flags(data_dir, workdir=str(folder / "work")), ALL]
    (folder / "gone").mkdir()
    if way == 0:
        return Case("environment", given, alone=True, environment=chance.choice(SETTINGS))
    if way == 1:
        before = chance.choice(BEFORE)
        # Where memory or descriptors are short, C++ may end the process; where no file can be, nothing is heard.
        return Case(
            f"environment: {before}",
            given,
            alone=True,
            before=before,
            heard="-f" not in before,
            statuses=(-6, -11, 134, 139, 127),
        )
    if way == 2:
        after = chance.choice(AFTER)
        wrong = [] if chance.random() < 0.5 else ["--seed=x"]
        return Case(
            f"environment: {after}", [*given, *wrong], alone=True, after=after, heard="2>&-" not in after
        )
    settings = chance.choice(['{"backend": "jax"}', '{"image_data_format": "channels_first"}', '{"floatx": "int8"}',
                              '{"floatx": "float16"}', "{", "[]", '{"epsilon": "x"}', "\0"])  # fmt: skip
    (folder / ".keras").mkdir()
    (folder / ".keras/keras.json").write_text(settings)
    return Case("environment: keras.json", given, alone=True, environment={"HOME": str(folder)})
