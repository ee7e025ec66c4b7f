"""Names of classes, wherever they come from: text of a column, folders."""

from collections.abc import Sequence

from trainer.errors import UserError


def check_spelling(flag: str, what: str, names: Sequence[str]) -> None:
    """Refuses two classes whose names differ by case or blanks only: one class in two spellings.

    Raises:
      UserError: names both.
    """
    seen: dict[str, str] = {}
    for name in names:
        plain = " ".join(name.casefold().split())
        if plain in seen:
            raise UserError(
                f"{flag}: {what}: {seen[plain]!r} and {name!r} differ by case or blanks only, and would be "
                "two "
                "classes. Write them alike."
            )
        seen[plain] = name
