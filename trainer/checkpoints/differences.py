"""How the variables of a checkpoint and those of a state differ, in lines for a person."""

import dataclasses

from trainer.checkpoints.manifest import ShapeDtype
from trainer.model.blocks import MOST_ROWS, folded


@dataclasses.dataclass(frozen=True)
class Differences:
    """Names in the state only, in the checkpoint only, and in both with another shape or dtype."""

    missing: list[str]
    extra: list[str]
    changed: dict[str, tuple[ShapeDtype, ShapeDtype]]  # name: (in the checkpoint, in the state)

    def lines(self) -> list[str]:
        """One a difference: ` + ` is only in the state, ` - ` only in the checkpoint, ` ~ ` other.

        Many are one line for each cause, their names folded by layer or block.
        """
        if len(self.missing) + len(self.extra) + len(self.changed) > MOST_ROWS:
            return self._by_cause()
        return [
            *(f" + {name}: not in the checkpoint" for name in self.missing),
            *(f" - {name}: only in the checkpoint" for name in self.extra),
            *(
                f" ~ {name}: {_text(saved)} in the checkpoint, {_text(here)} here"
                for name, (saved, here) in self.changed.items()
            ),
        ]

    def _by_cause(self) -> list[str]:
        lines = []
        if self.missing:
            lines.append(f" + {len(self.missing)} not in the checkpoint: {folded(self.missing)}")
        if self.extra:
            lines.append(f" - {len(self.extra)} only in the checkpoint: {folded(self.extra)}")
        if self.changed:
            name, (saved, here) = next(iter(self.changed.items()))
            lines.append(
                f" ~ {len(self.changed)} of another shape or dtype: {folded(list(self.changed))}; "
                f"{name}: {_text(saved)} in the checkpoint, {_text(here)} here"
            )
        return lines


def _text(spec: ShapeDtype) -> str:
    return f"{list(spec[0])} {spec[1]}"
