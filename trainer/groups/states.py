"""When the state of layers (statistics, counters) moves: a function of the rules and the step alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras

from trainer.groups.rules import Rule, first_match, matches
from trainer.model.frozen import trained_in
from trainer.model.names import ModelVariable


@dataclass(frozen=True)
class State:
    """One variable that no optimizer trains, and what decides whether the forward pass may move it.

    Attributes:
      name: of the variable.
      trained: names of the variables of its layer that can train.
      rule: the first that matches it; None where none does.
      only_state: whether that rule matches nothing that trains.
      fixed: the model itself says that nothing of the layer is to move.
    """

    name: str
    trained: frozenset[str]
    rule: Rule | None
    only_state: bool
    fixed: bool

    def moves(self, active: frozenset[str], groups: frozenset[str]) -> bool:
        """Whether it moves while the variables `active` train, which belong to `groups`.

        It moves with the variables of its layer, whatever a rule over more than state says. Where the layer
        has none to train, the rule decides. A frozen rule over nothing but state freezes it in any case.
        """
        frozen = self.rule is not None and self.rule.optimizer is None
        if self.fixed or (frozen and self.only_state):
            return False
        if self.trained:
            return bool(self.trained & active)
        return self.rule is None or self.rule.name in groups


def states(rules: Sequence[Rule], variables: Sequence[ModelVariable]) -> tuple[State, ...]:
    """The state of a model, random state left out: that is a function of the step.

    Args:
      rules: in order; all that `rules.assign` accepts.
      variables: of the model.
    """
    weights = [v for v in variables if v.trainable]
    inside: dict[int, frozenset[str]] = {}
    found = []
    for v in variables:
        if v.trainable or v.random:
            continue
        rule = first_match(rules, v)
        only = rule is not None and not any(matches(rule.pattern, w) for w in weights)
        if id(v.layer) not in inside:
            inside[id(v.layer)] = trained_in(v.layer, variables)
        fixed = isinstance(v.layer, keras.Layer) and not v.layer.trainable
        found.append(State(v.name, inside[id(v.layer)], rule, only, fixed))
    return tuple(found)


def still(found: Sequence[State], active: frozenset[str], groups: frozenset[str]) -> frozenset[str]:
    """Names of the state that does not move; arguments as of `State.moves`."""
    return frozenset(s.name for s in found if not s.moves(active, groups))
