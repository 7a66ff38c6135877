"""Refusals: how much of an answer says that it cannot be given.

Phrases stand by language in `phrases.toml`. They are looked for in all languages at once: an English refusal of a
German question is one. A sentence that holds one is hedged as a whole; the measure is the share of the answer's words
in such sentences. So a hedge in one sentence of a long useful answer weighs little, and an answer that says of each
factor in turn that it cannot be determined is found although it never refuses outright.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import takewhile

from augment.quality.words import split_words

# How many of the first sentences are the opening, in which a refusal weighs more than later.
OPENING_SENTENCES = 3
# A sentence with a phrase of one of these classes is hedged.
HEDGED = frozenset({"refuses", "excuses", "hedges", "corrects"})
_PART = re.compile(r"\([^()]*\)|[^\s()]+")
_PHRASE = re.compile(rf"(?!\.\.\.)(?:{_PART.pattern})(?:\s+(?:{_PART.pattern}))*")


class Phrases:
    """Phrases of several classes, compiled; each is found by the words that it can begin with."""

    def __init__(self, sources: Mapping[str, Sequence[str]]) -> None:
        """`sources`: class -> phrases, written as `phrases.toml` explains; raises ValueError for one that is not."""
        by_first: dict[str, dict[str, list[str]]] = {}
        for name, phrases in sources.items():
            for phrase in phrases:
                pattern, firsts = _compile(phrase)
                for first in firsts:
                    by_first.setdefault(first, {}).setdefault(name, []).append(pattern)
        self._by_first = {
            first: [(name, re.compile("|".join(patterns))) for name, patterns in classes.items()]
            for first, classes in by_first.items()
        }

    def classes(self, words: Sequence[str]) -> set[str]:
        """The classes of which a phrase stands in a sentence of these words."""
        found: set[str] = set()
        if self._by_first.keys().isdisjoint(words):
            return found
        line, place = " ".join(words) + " ", 0
        for word in words:
            for name, pattern in self._by_first.get(word, ()):
                if name not in found and pattern.match(line, place):
                    found.add(name)
            place += len(word) + 1
        return found


def hedging(sentences: Sequence[Sequence[str]]) -> dict[str, float]:
    """Measures of an answer given as the words of its sentences.

    `hedged_share`: share of words in sentences that refuse, make excuses, hedge or mend the question. `vague_share`:
    share of those that only say that things vary. `opens_with_refusal`: 1 if one of the first three sentences refuses
    outright.
    """
    phrases = load_phrases()
    total = hedged = vague = 0
    opens = False
    for number, sentence in enumerate(sentences):
        total += len(sentence)
        classes = phrases.classes(sentence)
        opens |= number < OPENING_SENTENCES and "refuses" in classes
        if not classes.isdisjoint(HEDGED):
            hedged += len(sentence)
        elif "vague" in classes and "details" not in classes:
            vague += len(sentence)
    return {
        "hedged_share": hedged / max(total, 1),
        "vague_share": vague / max(total, 1),
        "opens_with_refusal": float(opens),
    }


@cache
def load_phrases() -> Phrases:
    """The shipped phrases of all languages."""
    by_class: dict[str, list[str]] = {}
    for _, name, phrases in phrase_sources():
        by_class.setdefault(name, []).extend(phrases)
    return Phrases(by_class)


def phrase_sources() -> Iterator[tuple[str, str, list[str]]]:
    """Language, class and phrases as they stand in `phrases.toml`."""
    languages = tomllib.loads(files("augment.quality").joinpath("phrases.toml").read_text(encoding="utf-8"))
    for language, classes in languages.items():
        for name, phrases in classes.items():
            yield language, name, phrases


def _compile(source: str) -> tuple[str, set[str]]:
    """A regular expression over words that each end in a blank, and the words it can begin with."""
    if not _PHRASE.fullmatch(source):
        raise ValueError(f"the phrase {source!r} begins with no word, or has a bracket that touches one")
    parts = [_alternatives(part) for part in _PART.findall(source)]
    leading = list(takewhile(lambda part: part is not None and "" in part, parts))
    firsts = {words.split()[0] for part in parts[: len(leading) + 1] for words in part or () if words}
    return "".join(map(_expression, parts)), firsts


def _alternatives(part: str) -> list[str] | None:
    """What may stand at one place of a phrase, as words joined by blanks; None for a gap."""
    if part == "...":
        return None
    return [" ".join(split_words(choice)) for choice in part.strip("()").split("|")]


def _expression(alternatives: list[str] | None) -> str:
    if alternatives is None:
        return r"(?:\S+ ){0,4}?"
    choices = "|".join(re.escape(words) + " " for words in alternatives if words)
    return f"(?:{choices})" + ("?" if "" in alternatives else "")
