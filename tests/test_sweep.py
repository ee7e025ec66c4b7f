"""examples/sweep.py: every trial is a run, one that was cut off goes on, all are compared on one page."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

import optuna

import trainer
from trainer.checkpoints.manifest import scan

SWEEP = Path(__file__).resolve().parents[1] / "examples" / "sweep.py"
FLAGS = (
    "--model=mnist_cnn(filters=4, dense=8)",
    "--dataset=digits",
    "--train_split=train[:400]",
    "--eval_split=test[:100]",
    "--train_for=2epochs",
    "--report_to=none",
)


@pytest.fixture
def sweep():
    spec = importlib.util.spec_from_file_location("sweep", SWEEP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_sweep_that_is_cut_off_goes_on_and_is_compared(sweep, tmp_path, monkeypatch, capsys):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    where = f"--workdir={tmp_path / 'sweep'}"
    train, runs = trainer.Run.train, []

    def cut_off(self, **hooks):
        """Ctrl-C in the second trial, at its first evaluation."""
        runs.append(self)
        if len(runs) == 2:
            hooks["on_evaluation"] = lambda _: trainer.STOP
        return train(self, **{**hooks, "signals": False})

    monkeypatch.setattr(trainer.Run, "train", cut_off)
    with pytest.raises(KeyboardInterrupt):
        sweep.main([*FLAGS, where, "--trials=3"])
    second = tmp_path / "sweep" / "trial-001"
    assert not scan(second / "checkpoints")[0].meta["finished"]
    sweep.main([*FLAGS, where, "--trials=3"])
    assert len(runs) == 4 and runs[2]._config.workdir == str(second)
    assert scan(second / "checkpoints")[0].meta["finished"]
    shown = capsys.readouterr().out
    assert "best: accuracy" in shown and "Flags that differ" in shown and "one_cycle(" in shown
    page = (tmp_path / "sweep" / "compared.html").read_text()
    assert "3 runs compared" in page
    before = len(runs)
    sweep.main([*FLAGS, where, "--trials=3"])
    assert len(runs) == before


@pytest.mark.slow
def test_a_trial_that_lags_is_pruned(sweep, tmp_path, monkeypatch):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda self: self.number == 1)
    sweep.main([*FLAGS, f"--workdir={tmp_path}", "--trials=2"])
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/optuna.db")
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED"]
    steps = [scan(tmp_path / f"trial-00{i}" / "checkpoints")[0].step for i in (0, 1)]
    assert steps[0] > steps[1] > 0
