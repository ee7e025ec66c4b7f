"""Which flags have an effect with which others: one that nothing heeds is refused, never ignored."""

from collections.abc import Collection, Mapping

from trainer.errors import UserError

# Flags that only these modes heed.
_MODES_OF = {
    "plan_out": ("plan",),
    "propose_out": ("inspect",),
    "full": ("plan",),
    "export_to": ("export",),
    "export_format": ("export",),
    "predict_to": ("predict",),
    "checkpoint": ("evaluate", "export", "predict"),
    "weights": ("evaluate", "export", "predict"),
    "verify_steps": ("verify_resume", "verify_distribution"),
    "accept_plan_change": ("train", "plan"),
    "report_to": ("train", "report", "lr_find"),
    "runs": ("report",),
    "histograms": ("train",),
    "profile": ("train",),
    "show_groups": ("train",),
}
_INIT_RULES = ("init_only", "init_skip", "init_rename", "init_cast", "init_adapt", "init_layout")
# Flags that nothing heeds without another one: (flag, the other, what the other must not be, what to do).
_OF_NO_USE = (
    *((name, "init_from", "", "Give --init_from=PATH") for name in (*_INIT_RULES, "init_weights")),
    ("propose_out", "model", "", "Give the --model that the file is to fit"),
    ("histograms", "workdir", "", "Give --workdir=DIR, where TensorBoard looks"),
    ("profile", "workdir", "", "Give --workdir=DIR, where TensorBoard looks"),
    ("keep_best", "eval_split", "none", "Name an --eval_split to find the best by"),
    ("eval_every", "eval_split", "none", "Name an --eval_split"),
    ("stop_when", "eval_split", "none", "Name an --eval_split to judge by"),
)


def check(values: Mapping[str, object], given: Collection[str], modes: tuple[str, ...]) -> None:
    """Refuses a flag that the mode or the other flags leave without effect.

    Args:
      values: of every flag.
      given: the flags that differ from their defaults.
      modes: all there are.

    Raises:
      UserError: names the flag, its value and what it needs.
    """
    mode = values["mode"]
    for name in given:
        heeding, shown = _MODES_OF.get(name, modes), _shown(name, values[name])
        if mode not in heeding:
            raise UserError(
                f"{shown}: has no effect with --mode={mode}, only with "
                f"--mode={' or --mode='.join(heeding)}. Remove it."
            )
        if mode == "inspect" and not values["model"] and name in _INIT_RULES:
            raise UserError(f"{shown}: --mode=inspect tries it on a model. Give --model, or remove it.")
    for name, other, nothing, what_to_do in _OF_NO_USE:
        if name in given and values[other] == nothing:
            lacking = f"with --{other}={nothing}" if nothing else f"without --{other}"
            raise UserError(
                f"{_shown(name, values[name])}: has no effect {lacking}. {what_to_do}, or remove it."
            )
    if values["precision"] == "mixed_float16" and values["on_nonfinite"] == "off":
        raise UserError(
            "--on_nonfinite=off: --precision=mixed_float16 must find every overflow to set its loss "
            "scale. Give --on_nonfinite=skip or halt."
        )


def _shown(name: str, value: object) -> str:
    """The flag `name` as one writes it; of one that repeats, the first."""
    value = value[0] if isinstance(value, list) else value
    return f"--{name}" if value is True else f"--{name}={value}"
