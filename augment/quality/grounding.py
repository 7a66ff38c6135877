"""Grounding: titles and names in an answer that stand neither in its prompt nor in the catalogue.

Only quoted titles are judged. Names that are not quoted are measured and no more: a real LLM rightly names directors
and actors whom no table of the catalogue holds, and a gate cannot tell these from made-up ones.
"""

import re
from collections.abc import Collection

from augment.quality.words import MAX_TITLE_WORDS, name_keys, quoted, split_words, unquoted

# Two capitalised words or more, initials included: "J. K. Rowling", not the first word of every sentence.
_NAME = re.compile(r"\b[A-Z\u00c0-\u00de][\w'\u2019-]*\.?(?: [A-Z\u00c0-\u00de][\w'\u2019-]*\.?)+")


def catalogue_keys(names: Collection[str]) -> frozenset[str]:
    """The forms of titles and attribute values in which `grounding` looks names up."""
    return frozenset(key for name in names for key in name_keys(name))


def grounding(prompt: str, text: str, known: frozenset[str]) -> dict[str, float]:
    """Measures of the titles and names in `text`, given the catalogue's names in the forms of `catalogue_keys`.

    `quoted_titles`: how many different titles stand in double quotes: at most 20 words, beginning with a capital, a
    digit or a letter without case. `ungrounded_title_share` and `ungrounded_name_share`: the share of quoted titles,
    and of other names of two words and more, that are unknown to prompt and catalogue; 0 without any.
    """
    asked = f" {' '.join(split_words(prompt))} "
    titles = {title.strip(" ,.;:!?'") for title in quoted(text)}
    titles = {title for title in titles if _is_title(title)}
    names = set(_NAME.findall(unquoted(text)))
    return {
        "quoted_titles": float(len(titles)),
        "ungrounded_title_share": _unknown(titles, asked, known),
        "ungrounded_name_share": _unknown(names, asked, known),
    }


def _is_title(quotation: str) -> bool:
    return bool(quotation) and not quotation[0].islower() and 1 <= len(split_words(quotation)) <= MAX_TITLE_WORDS


def _unknown(names: Collection[str], asked: str, known: frozenset[str]) -> float:
    """Share of `names` of which no form is in `known` or in the words `asked`."""
    unknown = sum(not any(key in known or f" {key} " in asked for key in name_keys(name)) for name in names)
    return unknown / max(len(names), 1)
