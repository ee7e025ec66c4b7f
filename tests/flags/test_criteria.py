"""Which of two evaluations is better is stated, by the flag or the model module, and never guessed."""

import pytest

from trainer.errors import UserError
from trainer.flags import criteria
from trainer.flags.config import Config


@pytest.mark.parametrize(
    ("text", "stated", "wanted"),
    [
        ("loss", None, "loss:min"),
        ("accuracy", None, "accuracy:max"),
        ("rmse:min", None, "rmse:min"),
        ("rmse", {"rmse": "min"}, "rmse:min"),
        ("auc", {"rmse": "min", "auc": "max"}, "auc:max"),
        ("a:b:max", None, "a:b:max"),
        ("accuracy", {"accuracy": "min"}, "accuracy:min"),  # who states it decides, not the name
    ],
)
def test_the_direction_is_what_is_stated(text, stated, wanted):
    found = criteria.criterion(text, stated)
    assert str(found) == wanted
    less, more = found.better(1.0, 2.0), found.better(2.0, 1.0)
    assert (less, more) == ((True, False) if wanted.endswith("min") else (False, True))
    assert not found.better(float("nan"), 1.0)


@pytest.mark.parametrize(
    "name", ["rmse", "mae", "kl", "wer", "brier", "fpr", "auc", "error", "val_loss", "perplexity"]
)
def test_a_name_alone_is_refused_with_the_words_to_write(name):
    with pytest.raises(UserError) as raised:
        criteria.criterion(name)
    for words in (f"--keep_best={name}:min", f"--keep_best={name}:max", f"better = {{'{name}': 'min'}}"):
        assert words in str(raised.value)


def test_two_statements_that_differ_are_refused():
    with pytest.raises(UserError, match=r"--keep_best=rmse:max: .*'rmse': 'min'.*--keep_best=rmse:min"):
        criteria.criterion("rmse:max", {"rmse": "min"})


@pytest.mark.parametrize("text", ["rmse:less", "rmse:", ":min", "rmse:MIN"])
def test_what_is_no_direction_is_refused_with_the_flags(text):
    with pytest.raises(UserError, match=r"METRIC:min or METRIC:max"):
        Config(keep_best=text).check()


@pytest.mark.parametrize("better", [["rmse"], {"rsme": "min"}, {"rmse": "less"}, {"rmse": None}, "min"])
def test_a_better_that_says_nothing_is_refused(better):
    with pytest.raises(UserError, match="--model=net: its better"):
        criteria.check_stated(better, ("loss", "rmse"), "--model=net")
