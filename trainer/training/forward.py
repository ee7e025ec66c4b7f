"""A replica's share of one batch of an evaluation."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.data.feed import MASK, Feed
from trainer.model.returns import Term, some_losses
from trainer.model.scope import Scope
from trainer.training.gradients import Gradients, regularization


class _Pass(NamedTuple):
    """What one forward pass gives: losses with their weights, metrics, whether the model adds losses of its
    own, the sum of these and of regularisers, and the outputs of each row.
    """

    terms: dict[str, Term]
    metrics: Any
    added: bool
    own: Any
    outputs: dict[str, tf.Tensor]


@dataclass(frozen=True)
class Forward:
    """The forward pass of an evaluation, in replica context.

    Attributes:
      gradients: whose network is evaluated, and in whose terms.
      feed: an evaluation feed.
      active: names of the weights whose regularisers count; None for all that can train.
    """

    gradients: Gradients
    feed: Feed
    active: frozenset[str] | None

    def share(
        self, drawn: Any, step: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """(the window of the share and whether to stop, its outputs, what plain variables held before).

        Args:
          drawn: the whole batch.
          step: its number, int32 scalar.
        """
        gradients, replica = self.gradients, tf.distribute.get_replica_context().replica_id_in_sync_group
        before = gradients.plain()
        size = self.feed.batch // gradients.replicas
        first = tf.cast(step, tf.int64) * self.feed.batch + tf.cast(replica, tf.int64) * size
        key = tf.random.experimental.stateless_fold_in([gradients.settings.seed, 1], first)
        share = dict(self.feed.take(drawn, replica, gradients.replicas))
        mask = share.pop(MASK)
        found = self._pass(share, key, size)
        own, losses = found.own, some_losses(found.terms)
        if found.added and self.feed.examples % self.feed.batch:
            own = self._of_real_rows(share, key, mask, own)
        # Such a loss is a batch's; it counts for each of the examples that are real.
        window = gradients.sums(
            found.terms, found.metrics, mask, own * tf.reduce_sum(tf.cast(mask, losses.dtype))
        )
        return tf.concat([window, [tf.cast(gradients.stop, window.dtype)]], 0), found.outputs, before

    def _pass(self, share: Any, key: tf.Tensor, rows: int | None) -> _Pass:
        network, variables = self.gradients.network, self.gradients.state.variables
        can = [v for v in variables if v.trainable and (self.active is None or v.name in self.active)]
        batch = network.preprocess(share, False, key)
        with Scope(variables, key, frozenset(v.name for v in can)) as scope:
            terms, metrics = network.loss(batch, False, rows)
            dtype = some_losses(terms).dtype
            own = sum(tf.cast(x, dtype) for x in scope.losses + regularization(can))
            added = bool(scope.losses)
            given = network.outputs.rows(network.model, batch) if network.outputs else {}
        return _Pass(terms, metrics, added, own, given)

    def _of_real_rows(self, share: Any, key: tf.Tensor, mask: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
        """What the model adds over the rows that count, which stand first: padding is no part of a batch."""
        count = tf.cast(tf.reduce_sum(mask), tf.int32)
        whole = (count == 0) | (count == tf.size(mask))
        few = lambda: tf.nest.map_structure(lambda x: x[:count], share)  # noqa: E731
        return tf.cond(whole, lambda: own, lambda: self._pass(few(), key, None).own)
