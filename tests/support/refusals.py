"""What the tests of refusals share."""

BASE = {
    "model": "mnist_mlp(hidden=4)",
    "dataset": "digits",
    "train_for": "20steps",
    "batch_size": "32",
}


ALL = "--group=.* sgd constant(0.1)"


def says(message, *words):
    """Each of `words` stands in the message, in this order."""
    place = 0
    for word in words:
        found = message.find(word, place)
        assert found >= 0, f"{word!r} is not in (the rest of): {message}"
        place = found + len(word)
