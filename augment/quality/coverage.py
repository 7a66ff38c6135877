"""Factor coverage: how many of the factors that were asked about an answer touches at all.

A factor is touched where a word of its name stands in the answer, or a word that belongs to it (`factors.toml`:
"directed" for the director). Words are compared by stems: without a plural s, and the first six letters.
"""

import tomllib
from collections.abc import Sequence, Set
from functools import cache, lru_cache
from importlib.resources import files

from augment.quality.words import split_words

STEM_LETTERS = 6
# Words of a factor's name that say nothing about it.
_FILLERS = frozenset({"and", "or", "of", "the", "a", "an", "in", "for", "to", "with", "und", "oder", "et", "y"})


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The part of a word by which its forms are taken for one."""
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    return word[:STEM_LETTERS]


def factor_stems(factors: Sequence[str]) -> list[frozenset[str]]:
    """For each factor the stems that touch it."""
    belonging = _belonging()
    found = []
    for factor in factors:
        own = {stem(word) for word in split_words(factor) if word not in _FILLERS}
        found.append(frozenset(own.union(*(belonging.get(word, frozenset()) for word in own))))
    return found


def coverage(factors: Sequence[Set[str]], words: Sequence[str]) -> float:
    """Share of `factors` (as `factor_stems` gives them) that an answer of these words touches; 1 without factors."""
    said = {stem(word) for word in set(words)}
    return sum(not said.isdisjoint(factor) for factor in factors) / len(factors) if factors else 1.0


@cache
def _belonging() -> dict[str, frozenset[str]]:
    """Stem of a word in a factor's name -> stems of the words that belong to it."""
    raw = tomllib.loads(files("augment.quality").joinpath("factors.toml").read_text(encoding="utf-8"))
    return {stem(name): frozenset(stem(word) for word in words.split()) for name, words in raw.items()}
