r"""Few regular expressions in place of many names.

`{"trunk/a/kernel": "a/kernel", "trunk/b/kernel": "b/kernel", ...}` is `trunk/(.*) -> \1`.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class _Rule:
    pattern: str
    replacement: str

    def verdict(self, pairs: Mapping[str, str]) -> tuple[set[str], set[str]]:
        """Names that it renames as wanted, and as not wanted."""
        right: set[str] = set()
        wrong: set[str] = set()
        compiled = re.compile(self.pattern)
        for name, target in pairs.items():
            if match := compiled.fullmatch(name):
                (right if match.expand(self.replacement) == target else wrong).add(name)
        return right, wrong

    def __str__(self) -> str:
        return f"{self.pattern} -> {self.replacement}"


def renames(pairs: Mapping[str, str], identity_counts: bool) -> list[str]:
    r"""Rules `MODEL_REGEX -> SOURCE_NAME` that make its target of each name; the first that fits counts.

    Args:
      pairs: `{name: target}`; all that the rules will meet.
      identity_counts: whether a name that stays as it is needs a rule, too.
    """
    needed = {name for name, target in pairs.items() if identity_counts or name != target}
    if not needed:
        return []
    found = _strict(pairs, needed)
    broad = _broadest(pairs, needed)
    if broad and len(found) > 2:
        # Exceptions first, then the rule for all the others.
        right, wrong = broad.verdict(pairs)
        first = _strict(pairs, wrong)
        rest = needed - right - wrong
        if len(first) + 1 < len(found) and not any(rule.verdict(pairs)[0] & right for rule in first):
            found = [*first, broad, *(_strict(pairs, rest) if rest else [])]
    return [str(rule) for rule in found]


def cover(wanted: Sequence[str], names: Collection[str]) -> list[str]:
    """Patterns that fit just the wanted names among `names`: whole folders where all of one is wanted."""
    chosen = set(wanted)
    others = [name for name in names if name not in chosen]
    patterns: dict[str, None] = {}
    done: set[str] = set()
    for name in wanted:
        if name in done:
            continue
        fronts = [name[: at.end()] for at in re.finditer(r"[/.]", name)]
        front = next((f for f in fronts if not any(other.startswith(f) for other in others)), None)
        if front is None:
            patterns[re.escape(name)] = None
        else:
            patterns[re.escape(front) + ".*"] = None
            done |= {other for other in wanted if other.startswith(front)}
    return list(patterns)


def _strict(pairs: Mapping[str, str], needed: Collection[str]) -> list[_Rule]:
    """Rules without a single wrong name, the one that does most first."""
    left = set(needed)
    verdicts: list[tuple[_Rule, set[str]]] = []
    for rule in _candidates({name: pairs[name] for name in pairs if name in left}):
        right, wrong = rule.verdict(pairs)
        if not wrong and right & left:
            verdicts.append((rule, right))
            if left <= right:
                return [rule]
    found: list[_Rule] = []
    while left:
        rule, right = max(verdicts, key=lambda v: (len(v[1] & left), -len(v[0].pattern)))
        found.append(rule)
        left -= right
        verdicts = [(r, names) for r, names in verdicts if names & left]
    return found


def _broadest(pairs: Mapping[str, str], needed: Collection[str]) -> _Rule | None:
    """The rule that is right most often and wrong where a few others can come first."""
    best, most = None, 0
    for rule in _candidates({name: pairs[name] for name in pairs if name in needed}):
        right, wrong = rule.verdict(pairs)
        if len(right & set(needed)) - 2 * len(wrong) > most:
            best, most = rule, len(right & set(needed)) - 2 * len(wrong)
    return best


def _candidates(pairs: Mapping[str, str]) -> list[_Rule]:
    """Rules that are right for at least one name, the broadest first."""
    seen: dict[_Rule, None] = {}
    for name, target in pairs.items():
        for rule in _of_one(name, target):
            seen.setdefault(rule)
    return sorted(seen, key=lambda rule: (len(rule.pattern), rule.pattern))


def _of_one(name: str, target: str) -> Iterator[_Rule]:
    """Rules for one name: what both have in common is free, and numbers in what stands before it, too."""
    body, slash, last = name.rpartition("/")
    cut = max(target.rfind("/"), target.rfind("."))
    other, mark, end = target[: max(cut, 0)], target[cut : cut + 1] if cut >= 0 else "", target[cut + 1 :]
    yield from _middles(name, target, "", "")
    if slash and last == end:
        yield from _middles(body, other, r"/([^/]+)", mark + r"\LAST")
    elif slash:
        yield from _middles(body, other, "/" + re.escape(last), mark + _literal(end))
    yield from _fronts(name, target, "", "", "")


def _middles(ours: str, theirs: str, after: str, ending: str) -> Iterator[_Rule]:
    """Rules that keep a common end of `ours` and `theirs`, and go on with `after` and `ending`."""
    for start in [0, *(at.end() for at in re.finditer("/", ours))]:
        common = ours[start:]
        front = theirs[: len(theirs) - len(common)]
        if common and theirs.endswith(common) and (not front or front[-1] in "/."):
            yield from _fronts(ours[:start], front, "(.*)", after, ending)


def _fronts(ours: str, theirs: str, middle: str, after: str, ending: str) -> Iterator[_Rule]:
    """Rules that turn `ours` into `theirs` and keep what follows; with numbers free, and as they are."""
    numbers = _NUMBER.findall(ours)
    for free in (True, False) if numbers else (False,):
        groups = len(numbers) if free else 0
        replacement = ""
        for piece in re.split(r"(\d+)", theirs):
            taken = free and piece in numbers
            replacement += rf"\{numbers.index(piece) + 1}" if taken else _literal(piece)
        pattern = r"(\d+)".join(map(re.escape, _NUMBER.split(ours))) if free else re.escape(ours)
        if free and replacement == _literal(theirs):
            continue
        kept = rf"\{groups + 1}" if middle else ""
        last = ending.replace(r"\LAST", rf"\{groups + 1 + bool(middle)}")
        yield _Rule(pattern + middle + after, replacement + kept + last)


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")
