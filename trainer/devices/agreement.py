"""What several workers must agree on before they train together: small texts, through the strategy's reduce.

Each function is called by all workers at the same point. With one worker none of them does anything.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from trainer.devices.replicas import local_replicas, worker
from trainer.errors import UserError, listing

LENGTH = 256  # bytes of a text that are told
_REFUSED = "(refused)"  # what the first worker tells where it cannot go on


def share(strategy: tf.distribute.Strategy, text: str) -> list[str]:
    """What each worker says, in the order of the workers, cut to `LENGTH` bytes."""
    index, count = worker(strategy)
    if count == 1:
        return [text]
    each, data = local_replicas(strategy), text.encode()[:LENGTH]

    def own_row(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        rows = np.zeros([count, LENGTH], np.int64)  # GPUs reduce int64, and int32 not everywhere
        if context.replica_id_in_sync_group % each == 0:
            rows[index, : len(data)] = list(data)
        return tf.constant(rows)

    values = strategy.experimental_distribute_values_from_function(own_row)
    rows = strategy.reduce("SUM", values, axis=None).numpy().astype(np.uint8)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


def from_first(strategy: tf.distribute.Strategy, act: Callable[[], str]) -> str:
    """Lets the first worker act while the others wait; what it answered, on all.

    Raises:
      UserError: it refused. It says why, and the others say that it did.
    """
    if worker(strategy)[0] > 0:
        answer = share(strategy, "")[0]
        if answer == _REFUSED:
            raise UserError("--strategy=multi_worker: the first worker refused; its own message says why.")
        return answer
    try:
        answer = act()
    except UserError:
        share(strategy, _REFUSED)
        raise
    share(strategy, answer)
    return answer


def text_from_first(strategy: tf.distribute.Strategy, act: Callable[[], str]) -> str:
    """As `from_first`, for a text of any length in ASCII.

    Raises:
      UserError: as `from_first`.
    """
    texts: list[str] = []
    size = int(from_first(strategy, lambda: texts.append(act()) or str(len(texts[0]))))  # type: ignore[func-returns-value]
    text = texts[0] if texts else ""
    return "".join(share(strategy, text[at : at + LENGTH])[0] for at in range(0, size, LENGTH))


def check_same(strategy: tf.distribute.Strategy, parts: Mapping[str, str], what: str, remedy: str) -> None:
    """Refuses to go on where the workers do not hold the same texts under the same names.

    Args:
      strategy: of the run.
      parts: `{name: text}`; every worker looks at them in the same order.
      what: such as "flags", for the message.
      remedy: a sentence for the message.

    Raises:
      UserError: on all workers; names the first part that differs and what each worker has there.
    """
    items = [f"{name}: {text}" for name, text in parts.items()]
    all_of_it = hashlib.sha256("\n".join(items).encode()).hexdigest()
    if len(set(share(strategy, all_of_it))) == 1:
        return
    # All workers see that they differ, so that all of them look for the first difference.
    for i in range(max(map(int, share(strategy, str(len(items)))))):
        item = items[i] if i < len(items) else "nothing"
        rows = share(strategy, hashlib.sha256(item.encode()).hexdigest()[:8] + item)
        if len(set(rows)) > 1:
            break
    texts = [f"worker {index} has {text[8:]!r}" for index, text in enumerate(rows)]
    raise UserError(f"--strategy=multi_worker: the workers' {what} differ: {listing(texts, 8)}. {remedy}")


def digests(strategy: tf.distribute.Strategy, state: Mapping[str, tf.Variable]) -> dict[str, str]:
    """`{name: checksum}` of each float variable, over all copies of it in this process; {} for one worker."""
    result: dict[str, str] = {}
    if worker(strategy)[1] == 1:
        return result
    for name, variable in state.items():
        if variable.dtype.is_floating:
            copies = strategy.experimental_local_results(variable)
            sums = {hashlib.sha256(copy.numpy().tobytes()).hexdigest()[:16] for copy in copies}
            result[name] = " and ".join(sorted(sums))
    return result
