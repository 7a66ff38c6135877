"""Leaks: what an answer holds that is the prompt's or the template's, and not its own.

Only the prompt's own sentences count. The data that it shows may come back and often should: titles (quotations), what
tags fence (an earlier summary, a description), names of the catalogue, and the factors that it lists. What is left is
compared by runs of eight words, both ways: an answer may be little else than the prompt, or hold most of the prompt's
sentences among much else. Taking up the question in the first sentence is neither.
"""

import re
from collections.abc import Collection, Sequence, Set

from augment.quality.words import MAX_TITLE_WORDS, instructions, split_words
from prompts.hygiene import find_template_token

# What an answer and its question share by chance is shorter.
RUN_WORDS = 8
_TAG = re.compile(r"</?\s*([A-Za-z_]{3,30})\b[^<>]*>")


def leaked_token(prompt: str, text: str, special_tokens: Sequence[str] = ()) -> str | None:
    """A chat-template token in `text`, or a tag that fences data in `prompt` and stands in `text` too; else None."""
    # No token holds a line break; on one line, plain text need not be looked at letter by letter.
    token = find_template_token(" ".join(text.split()), special_tokens)
    if token is None and "<" in text:
        fences = {name.lower() for name in _TAG.findall(prompt)}
        token = next((tag.group() for tag in _TAG.finditer(text) if tag[1].lower() in fences), None)
    return token


def copying(prompt: str, words: Sequence[str], factors: Collection[str], known: Set[str]) -> dict[str, float]:
    """Measures of an answer's `words` against its prompt's own, in runs of eight words that both hold.

    `copied_share`: share of the answer's words that lie in such runs. `echoed_words` and `echoed_share`: how many of
    the prompt's own words do, and which share of them that is. `known` holds the catalogue's names as
    `grounding.catalogue_keys` gives them: they are set aside where the prompt does not quote them.
    """
    said = set(_windows(words))
    parts = _parts(instructions(prompt), factors)
    if not any(run in said for part in parts for run in _windows(part)):
        return {"copied_share": 0.0, "echoed_words": 0.0, "echoed_share": 0.0}
    own = [rest for part in parts for rest in _without_names(part, known)]
    echoed = sum(_covered(part, said) for part in own)
    return {
        "copied_share": _covered(words, {run for part in own for run in _windows(part)}) / len(words),
        "echoed_words": float(echoed),
        "echoed_share": echoed / max(sum(map(len, own)), 1),
    }


def _parts(prompt: str, factors: Collection[str]) -> list[list[str]]:
    """The words of each line of the prompt, parted at factors too."""
    if factors:
        listed = "|".join(re.escape(factor) for factor in sorted(factors, key=len, reverse=True))
        prompt = re.sub(rf"\b(?:{listed})\b", "\n", prompt, flags=re.IGNORECASE)
    return [split_words(line) for line in prompt.split("\n")]


def _without_names(words: list[str], known: Set[str]) -> list[list[str]]:
    """`words` parted at names of two words and more that stand in `known`; the longest at each place is taken."""
    parts: list[list[str]] = [[]]
    place = 0
    while place < len(words):
        lengths = range(min(MAX_TITLE_WORDS, len(words) - place), 1, -1) if known else ()
        length = next((n for n in lengths if " ".join(words[place : place + n]) in known), 0)
        if length:
            parts.append([])
        else:
            parts[-1].append(words[place])
        place += length or 1
    return parts


def _windows(words: Sequence[str]) -> "zip[tuple[str, ...]]":
    return zip(*(words[start:] for start in range(RUN_WORDS)), strict=False)


def _covered(words: Sequence[str], runs: Set[tuple[str, ...]]) -> int:
    """How many of `words` lie in one of `runs`."""
    covered = until = 0
    for place, run in enumerate(_windows(words)):
        if run in runs:
            covered += place + RUN_WORDS - max(place, until)
            until = place + RUN_WORDS
    return covered
