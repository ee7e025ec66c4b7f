"""What a model and its loss must be, checked before any data is read."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from trainer.errors import UserError, listing, near
from trainer.model import returns
from trainer.model.graphs import host_functions, strange_writes, traced, written
from trainer.model.labels import classes_of
from trainer.model.module import ModelModule, guarded
from trainer.model.names import ModelVariable
from trainer.model.scope import Scope


def check_features(module: ModelModule, model: Any, features: Any, what: str) -> None:
    """Lets the module's own `check(model, features)`, where it has one, refuse a data set by ValueError.

    Args:
      module: the model module.
      model: what its `build` returned.
      features: of the data set, as its source has them.
      what: the flags, for the message.

    Raises:
      UserError: it raised.
    """
    own = module.check
    if own is None:
        return

    def check() -> None:
        try:
            own(model, features)
        except ValueError as error:
            raise UserError(f"{what}: {error}.") from error

    guarded(check, f"{what}: the model's check")


def check_precision(model: Any, variables: Sequence[ModelVariable], precision: str) -> None:
    """Refuses a model whose variables or layers do not have the precision asked for.

    Raises:
      UserError: names the first such variable.
    """
    storage = tf.float64 if precision == "float64" else tf.float32
    for v in variables:
        if v.trainable and v.dtype != storage:
            raise UserError(
                f"--precision={precision}: {v.name} is {v.dtype.name}. Let the model's build make its "
                f"variables in keras.config.floatx(), which is {storage.name} then."
            )
    if precision.startswith("mixed"):
        dtype = precision.removeprefix("mixed_")
        layers = [v.layer for v in variables if isinstance(v.layer, keras.Layer)]
        if not any(layer.compute_dtype == dtype for layer in layers):
            raise UserError(
                f"--precision={precision}: no Keras layer of the model computes in {dtype}. Mixed precision "
                "is a policy of Keras layers; a plain tf.Module takes --precision=float32 or float64."
            )


class Traced(NamedTuple):
    """What a trace of the loss has told.

    Attributes:
      means: that the loss yields.
      assigned: names of the variables that a forward pass writes.
      classes: `{feature: classes}` of those that the loss takes for numbers of classes.
      hosts: functions of Python that a step calls, each with its line.
    """

    means: returns.Means
    assigned: frozenset[str]
    classes: Mapping[str, int]
    hosts: tuple[str, ...]


@dataclass
class LossTrace:
    """The loss and its gradient, traced on a batch of the data's shapes; nothing is run.

    Attributes:
      module: the model module.
      model: what its `build` returned.
      variables: of the model.
      trained: by the name of each variable that some group trains, the loss that moves it; "" for the sum
        of all.
      nested: in words, why the step runs the forward pass inside of an inner function; empty where not.
    """

    module: ModelModule
    model: Any
    variables: Sequence[ModelVariable]
    trained: Mapping[str, str]
    nested: str = ""
    _metrics: dict[bool, frozenset[str]] = field(default_factory=dict)
    _losses: dict[bool, tuple[str, ...]] = field(default_factory=dict)
    _weighted: set[str] = field(default_factory=set)
    _reached: dict[str, frozenset[str]] = field(default_factory=dict)
    _assigned: set[str] = field(default_factory=set)
    _strange: set[str] = field(default_factory=set)
    _buried: set[str] = field(default_factory=set)
    _classes: dict[str, int] = field(default_factory=dict)
    _hosts: list[str] = field(default_factory=list)
    _watched: Sequence[Any] = ()

    def check(
        self,
        spec: Mapping[str, Any],
        batch: int,
        strategy: tf.distribute.Strategy,
        evaluates: bool = True,
    ) -> Traced:
        """What the loss yields and writes, in training and in evaluation.

        Args:
          spec: of one decoded example.
          batch: examples of one replica's batch.
          strategy: in whose scope the model was built.
          evaluates: whether it is evaluated as well.

        Raises:
          UserError: `preprocess` or `loss` raises, changes the number of rows, returns something else than
            (loss, {metric: [B]}), other metrics or losses in evaluation than in training, uses a trainable
            variable that has no name here, does not depend on a variable that is to be trained by it, writes
            what is not the model's, or draws random numbers that are not the step's; a rule names a loss that
            there is not; a loss moves nothing.
        """
        batched = tf.nest.map_structure(lambda s: tf.TensorSpec([batch, *s.shape], s.dtype), dict(spec))
        for training in (True, False) if evaluates else (True,):
            self._traced(batched, training, strategy)
        for what, found in (("metrics", self._metrics), ("losses", self._losses)) if evaluates else ():
            one, other = (sorted(found[training]) for training in (True, False))
            if one != other:
                raise UserError(
                    f"--model: its loss returns the {what} {listing(one)} in training and {listing(other)} "
                    "in evaluation. Return the same names in both."
                )
        self._check_strange()
        self._check_reached()
        means = returns.Means(
            tuple(sorted(self._metrics[True])), self._losses[True], frozenset(self._weighted)
        )
        hosts = tuple(dict.fromkeys(self._hosts))
        return Traced(means, frozenset(self._assigned), self._classes, hosts)

    def _check_named(self, losses: Sequence[str]) -> None:
        """Refuses the name of a loss that there is not."""
        for loss in dict.fromkeys(self.trained.values()):
            if loss and loss not in losses:
                names = (
                    near(loss, losses) if losses[0] else "Its loss has no names: return {name: loss, ...}."
                )
                raise UserError(f"--group: loss={loss}: the model has no such loss. {names}")

    def _check_reached(self) -> None:
        """Refuses what trains by no gradient, and a loss that nothing trains by."""
        reached = frozenset().union(*self._reached.values())
        if loose := [name for name in self.trained if name not in reached]:
            loss = self.trained[loose[0]]
            which = f"loss {loss}" if loss else "loss"
            other = f"Give its rule another than loss={loss}, or add" if loss else "Add"
            names = listing(name for name in loose if self.trained[name] == loss)
            raise UserError(
                f"--group: the {which} does not depend on {names}, so there is no gradient to train it by. "
                f"{other} a rule before the others that freezes it, such as --group='{loose[0]} frozen'."
            )
        for loss in self._losses[True] if self.trained and self._losses[True] != ("",) else ():
            if not self._reached[loss]:
                raise UserError(
                    f"--group: the loss {loss} moves nothing: no group has loss={loss}, or it depends on "
                    f"nothing that such a group trains. Give a group loss={loss}, or do not return it."
                )

    def _traced(self, batched: Any, training: bool, strategy: tf.distribute.Strategy) -> None:
        def once(batch: Any) -> None:
            inner = lambda b: self._trace(b, training)  # noqa: E731
            (tf.function(inner) if self.nested and training else inner)(batch)

        def on_replicas(batch: Any) -> None:
            strategy.run(once, args=(batch,))

        with _nested(self.nested):
            what = "--model: its loss" + ("" if training else " in evaluation")
            graph = traced(on_replicas, batched, what).graph
        self._assigned |= written(graph, self.variables)
        self._strange |= set(strange_writes(graph, self.variables))
        self._hosts += host_functions(graph)

    def _check_strange(self) -> None:
        known = {id(v.value) for v in self.variables}
        strange = [w.name for w in self._watched if id(_container(w)) not in known]
        if strange:
            raise UserError(
                f"--model: its loss uses the trainable variable {listing(strange)}, to which no attribute of "
                "the model leads. Make it in build, and keep it in the model."
            )
        if self._buried:
            raise UserError(
                f"--model: {listing(sorted(self._buried))} is assigned inside of a tf.cond, tf.while_loop, "
                "tf.map_fn or tf.function, out of whose graph no value comes. Compute the new value in "
                "there, and assign it outside."
            )
        if self._strange:
            raise UserError(
                f"--model: its loss or preprocess writes {listing(sorted(self._strange))}, which is no "
                "variable of the model, so that no checkpoint would hold its value. Make it in build, and "
                "keep it in the model; a metric is to be returned by loss, one value per example."
            )

    def _trace(self, batch: Any, training: bool) -> None:
        key, rows, raw = tf.zeros([2], tf.int32), returns.rows_of(batch), batch
        if self.module.preprocess:
            with Scope(self.variables, key, what="preprocess") as before:
                batch = self.module.preprocess(batch, training, key)
            returns.check_rows(raw, batch)
            self._strange.update(before.strange)
        with (
            tf.GradientTape(persistent=True) as tape,
            Scope(self.variables, key, frozenset(self.trained)) as scope,
        ):
            result = self.module.loss(self.model, batch, training)
            terms = returns.checked(result, rows)
            self._check_named(list(terms))
            totals = {name: tf.reduce_sum(losses) for name, (losses, _) in terms.items()}
            added = sum(tf.cast(x, tf.float64) for x in scope.losses)
        self._metrics[training] = frozenset(result[1])
        self._losses[training] = tuple(terms)
        self._weighted |= {name for name, (_, weights) in terms.items() if weights is not None}
        self._classes |= classes_of(next(iter(totals.values())).graph, raw)
        self._assigned |= {v.name for v in self.variables if not v.random and scope.assigned(v) is not None}
        self._strange.update(scope.strange)
        self._buried.update(scope.buried)
        if training:
            self._watched = tape.watched_variables()
            self._reached = {name: self._reach(tape, total, ("", name)) for name, total in totals.items()}
            if scope.losses:
                self._reached["/"] = self._reach(tape, added, set(self.trained.values()))

    def _reach(self, tape: tf.GradientTape, total: tf.Tensor, losses: Collection[str]) -> frozenset[str]:
        """Names of the variables that train by one of `losses` and by which `total` changes."""
        wanted = [v for v in self.variables if self.trained.get(v.name) in losses]
        slopes = tape.gradient(total, [v.value for v in wanted])
        return frozenset(v.name for v, s in zip(wanted, slopes) if s is not None)  # noqa: B905


@contextlib.contextmanager
def _nested(why: str) -> Iterator[None]:
    """Says what is at fault where the forward pass communicates and cannot."""
    try:
        yield
    except UserError as error:
        if why and "merge_call" in str(error):
            raise UserError(
                f"{why}: the model communicates between replicas in its forward pass (BatchNormalization "
                "with synchronized=True, or an all_reduce of its own), which TensorFlow cannot do there. "
                "Leave the flag out, or let each replica have statistics of its own."
            ) from None
        raise


def _container(variable: Any) -> Any:
    """The MirroredVariable of which `variable` is one replica's copy, or the variable itself."""
    container = getattr(variable, "_distributed_container", None)
    return container() if container else variable
