"""Texts as words, sentences and quoted titles, for all rules of the gate alike.

A word is a run of letters and digits in lower case. Scripts that put no blanks between words (Chinese, Japanese, Thai,
Lao, Khmer) give one word per character.
"""

import re

from prompts.hygiene import article_first

# Titles with their subtitles have no more; what is longer is a citation.
MAX_TITLE_WORDS = 20
_UNSPACED = re.compile(r"([\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
# A full stop ends a sentence only before a blank, a bracket or the end: not in 3.5 or in a web address. A row of them
# is looked at once, from its beginning, or a text of nothing but dots would take quadratic time.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++(?=[\s\"')\]*]|$)|[\u3002\uff01\uff1f]|\n")
_OPENING = '"\u201c\u201e\u201e\u00ab\u300a\u300c'
_CLOSING = '"\u201d\u201c\u201d\u00bb\u300b\u300d'
_QUOTED = re.compile("|".join(f"{a}([^{a}{b}\n]{{0,200}}){b}" for a, b in zip(_OPENING, _CLOSING, strict=True)))
_FENCED = re.compile(r"<([A-Za-z_]{3,30})\b[^<>]*>.*?</\1>", re.DOTALL)
_BRACKETED = re.compile(r"\s*[(\[][^()\[\]]*[)\]]")


def split_words(text: str) -> list[str]:
    """The words of `text` in order."""
    folded = text.replace("\u2019", "'").casefold()
    if not folded.isascii():
        folded = _UNSPACED.sub(r" \1 ", folded)
    return _WORD.findall(folded)


def split_sentences(text: str) -> list[list[str]]:
    """The words of each sentence or line in order; together they are `split_words(text)`."""
    return [words for part in _SENTENCE_END.split(text) if (words := split_words(part))]


def unspaced_words(text: str) -> int:
    """How many of the words of `text` are single characters of a script that puts no blanks between words."""
    return 0 if text.isascii() else len(_UNSPACED.findall(text))


def quoted(text: str) -> list[str]:
    """What stands between double quotes of any kind, each on one line and of at most 200 characters."""
    found = (match.group(match.lastindex or 0) for match in _QUOTED.finditer(text))
    return [quotation for quotation in found if quotation]


def unquoted(text: str) -> str:
    """`text` with a line break in place of every quotation."""
    return _QUOTED.sub("\n", text)


def instructions(prompt: str) -> str:
    """What a prompt says itself: without quotations and without the data that tags fence (`<item>` to `</item>`)."""
    return unquoted(_FENCED.sub("\n", prompt))


def name_keys(name: str) -> set[str]:
    """The forms by which a title or name is looked up: its words joined by blanks.

    With and without a bracketed year or other title, and without a subtitle; a trailing article is put first. The
    empty form is none.
    """
    bare = _BRACKETED.sub("", name)
    forms = {article_first(form.strip()) for form in (name, bare, bare.split(":")[0])}
    return {key for form in forms if (key := " ".join(split_words(form)))}
