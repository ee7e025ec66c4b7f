"""A sweep over a few flags with Optuna (`pip install optuna`): resumable, pruned, compared on one page.

    python examples/sweep.py --flagfile=mnist.flags --workdir=runs/sweep [--trials=8]

Every trial is a run in a directory of its own. Ctrl-C ends it as it ends any run, saved; the same command
goes on with the trial that was cut off, from its checkpoint, and then with the next ones.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this file lies in

import optuna

import trainer
from trainer.__main__ import main as command
from trainer.flags.command_line import parse
from trainer.flags.config import Config


def suggested(trial: optuna.Trial) -> dict[str, object]:
    """What is varied: here two rates and the batch."""
    kernels = trial.suggest_float("kernels", 1e-3, 2e-2, log=True)
    biases = trial.suggest_float("biases", 1e-3, 1e-1, log=True)
    return {
        "group": [
            f".*/bias  sgd(momentum=0.9)  linear({biases:.3g})  name=biases",
            f".*  adam  one_cycle({kernels:.3g})  name=kernels",
        ],
        "batch_size": trial.suggest_categorical("batch_size", [64, 128]),
    }


def objective(trial: optuna.Trial, base: Config, metric: str) -> float:
    """The metric of a trial's last evaluation; a trial that lags behind the others is stopped early."""
    workdir = trial.user_attrs.get("workdir", f"{base.workdir}/trial-{trial.number:03}")
    trial.set_user_attr("workdir", workdir)
    flags = {**vars(base), **suggested(trial), "workdir": workdir}
    lags = False

    def judge(record: dict[str, float]) -> object:
        nonlocal lags
        trial.report(record[metric], int(record["step"]))
        lags = trial.should_prune()
        return trainer.STOP if lags else None

    result = trainer.Run(**flags).train(on_evaluation=judge, signals=True)
    if lags:
        raise optuna.TrialPruned
    if result.stopped:  # by Ctrl-C: the trial has failed, and `resume` goes on with it
        raise KeyboardInterrupt
    return result.metrics[metric]


def resume(study: optuna.Study) -> None:
    """Trials that were cut off come first, in the directories where their checkpoints lie."""
    states = optuna.trial.TrialState
    for killed in study.get_trials(states=[states.RUNNING]):
        study.tell(killed.number, state=states.FAIL)
    going_on = {t.user_attrs.get("workdir") for t in study.get_trials() if t.state != states.FAIL}
    for cut in study.get_trials(states=[states.FAIL]):
        if cut.params and cut.user_attrs.get("workdir") not in going_on:
            study.enqueue_trial(cut.params, user_attrs=cut.user_attrs)
            going_on.add(cut.user_attrs.get("workdir"))


def main(arguments: list[str]) -> None:
    """Runs what is left of the sweep, then writes `compared.html`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=8, help="of the whole sweep")
    parser.add_argument("--metric", default="accuracy", help="to be made large")
    own, flags = parser.parse_known_args(arguments)
    base = parse(["sweep", *flags])
    Path(base.workdir).mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{base.workdir}/optuna.db", study_name="sweep", load_if_exists=True,
        direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )  # fmt: skip
    study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(study.trials))
    resume(study)
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    left = own.trials - len(study.get_trials(states=finished))
    if left > 0:
        study.optimize(lambda trial: objective(trial, base, own.metric), n_trials=left)
    print(f"best: {own.metric} {study.best_value:.4f} with {study.best_params}")
    runs = [f"--runs={t.user_attrs['workdir']}" for t in study.get_trials(states=finished)]
    command(["run.py", "--mode=report", f"--report_to={base.workdir}/compared.html", *runs])


if __name__ == "__main__":
    main(sys.argv[1:])
