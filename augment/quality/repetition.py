"""Repetition: how much of a text says again what it said before.

The measures are those of MassiveText's filters (Rae et al. 2021, "Gopher", arXiv 2112.11446, table A1), as shares of
0 to 1 of the text's characters, blanks and punctuation aside:

- lines and paragraphs that stood before: their share by number and by characters;
- for n = 2, 3, 4: what the occurrences of one n-gram cover, of the n-gram that covers most;
- for n = 5 to 10: what lies in n-grams that stood before (the first occurrence is not counted, so that a text said
  twice scores one half).

Three things are adapted to answers of some hundred words. A frequent n-gram counts only from `min_count` occurrences
on: in a text of thirty words, a phrase said twice is a fifth of it. And where most words are single characters of a
script without blanks, n is doubled, for a Chinese word has about two. Quotations are set aside in n-grams: an answer
may name its title in every sentence.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

from augment.quality.words import split_words, unquoted, unspaced_words

_LETTER = re.compile(r"[^\W_]")
FREQUENT = (2, 3, 4)
DUPLICATE = (5, 6, 7, 8, 9, 10)


def repetition(text: str, min_count: int) -> dict[str, float]:
    """All measures of `text` by name: `duplicate_line_share`, `frequent_2gram_share`, `duplicate_10gram_share`, ..."""
    words = split_words(unquoted(text))
    measures = {**_duplicates("line", text.split("\n")), **_duplicates("paragraph", text.split("\n\n"))}
    scale = 2 if 2 * unspaced_words(text) > len(words) else 1
    ends = [0, *accumulate(map(len, words))]
    total = max(ends[-1], 1)
    frequent = {n * scale: n for n in FREQUENT}
    duplicate = {n * scale: n for n in DUPLICATE}
    measures |= {f"frequent_{n}gram_share": 0.0 for n in FREQUENT}
    measures |= {f"duplicate_{n}gram_share": 0.0 for n in DUPLICATE}
    for n, groups in repeated_ngrams(words, max(duplicate)):
        if n in frequent:
            covered = max((_covered(g, n, ends) for g in groups if len(g) >= min_count), default=0)
            measures[f"frequent_{frequent[n]}gram_share"] = covered / total
        elif n in duplicate:
            again = sorted(position for group in groups for position in group[1:])
            measures[f"duplicate_{duplicate[n]}gram_share"] = _covered(again, n, ends) / total
    return measures


def repeated_ngrams(words: Sequence[str], longest: int) -> Iterator[tuple[int, list[list[int]]]]:
    """For n = 1 to `longest`: n and the places of each n-gram that stands at least twice, as lists of first words.

    An n-gram repeats only where the (n-1)-grams at its two ends do. So each step looks only at places that the step
    before left, which in sound text are few; it ends early where none is left.
    """
    by_word: dict[str, list[int]] = defaultdict(list)
    for place, word in enumerate(words):
        by_word[word].append(place)
    groups = [places for places in by_word.values() if len(places) > 1]
    for n in range(1, longest + 1):
        if not groups:
            return
        yield n, groups
        name = {place: number for number, places in enumerate(groups) for place in places}
        longer: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, places in enumerate(groups):
            for place in places:
                after = name.get(place + 1)
                if after is not None:
                    longer[number, after].append(place)
        groups = [places for places in longer.values() if len(places) > 1]


def _covered(places: Sequence[int], n: int, ends: Sequence[int]) -> int:
    """Characters in the n-grams at `places` (ascending), each counted once; `ends` are running sums of lengths."""
    covered = until = 0
    for place in places:
        covered += ends[place + n] - ends[max(place, until)]
        until = place + n
    return covered


def _duplicates(unit: str, parts: Sequence[str]) -> dict[str, float]:
    """Share of `parts` that stood before, by number and by characters; blanks, case and parts without words aside."""
    filled = [" ".join(part.casefold().split()) for part in parts if _LETTER.search(part)]
    again = [part for count, part in _numbered(filled) if count]
    return {
        f"duplicate_{unit}_share": len(again) / max(len(filled), 1),
        f"duplicate_{unit}_char_share": sum(map(len, again)) / max(sum(map(len, filled)), 1),
    }


def _numbered(parts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Each part with how often it stood before."""
    seen: dict[str, int] = defaultdict(int)
    for part in parts:
        yield seen[part], part
        seen[part] += 1
