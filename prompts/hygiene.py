"""Cleaning of untrusted text (titles, attributes, earlier answers) before it stands inside a prompt.

A title is data. It must not end the field it stands in, open a chat turn, or hide characters that a reader of the
prompt cannot see. What it says in plain words stays, orders included: the fences and the sentence before them tell the
model that it is quoted.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

# Chat-template tokens of the common model families; the model's own special tokens are added at run time.
KNOWN_TEMPLATE_TOKENS = (
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<pad>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<eoh>",
    "<eoa>",
    "<BOS_TOKEN>",
    "<EOS_TOKEN>",
    "<end_of_utterance>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "]~b]",
    "]~!b[",
    "[e~[",
)
_TOKEN_SHAPES = (
    # <|im_start|>, <|eot_id|>, <|endoftext|>, DeepSeek's full-width bars, and whatever the next family invents.
    r"<[|\uff5c][^<>]{0,60}?[|\uff5c]>",
    # EXAONE: [|user|], [|endofturn|].
    r"\[\|\w{1,40}\|\]",
    # Numbered spares that fine-tuned chat models use as turns: <reserved_106>, <extra_id_1>, <unused7>, <SPECIAL_10>.
    r"<(?:reserved|extra_id|unused|tokens_unused|special)_?\d{1,6}>",
    r"</?seed:\w{1,20}>",
)
# The tags that fence data in our own templates.
_FENCES = r"<\s*/?\s*(?:history|item|liked|turned_down|previous|current|group|catalogue)\b[^<>]*>"

# What a terminal would act on: colours and cursor moves (ESC [ ... or the one-byte form), titles (ESC ]), the rest.
_ANSI = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]")
# Separators and control characters become blanks. Cf: zero-width and bidirectional marks and tags, Cs: lone surrogates,
# Co and Cn: no agreed meaning. Those go without a trace.
_BLANK = {"Cc", "Zl", "Zp", "Zs"}
_HIDDEN = {"Cf", "Cs", "Co", "Cn"}
_MARKS = {"Mn", "Me"}
# Marks on one letter. Pointed Hebrew and Tibetan stacks have up to four; storms of hundreds spill over the lines.
_MAX_MARKS = 4
# Invisible letters and marks that Unicode files among the visible: fillers, joiners, variation selectors (which can
# carry whole hidden messages), the empty Braille cell. And everything that reads as a double quote.
_LOOKALIKES = {
    **dict.fromkeys((0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0)),
    **dict.fromkeys((*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))),
    0x2800: " ",
    **dict.fromkeys(
        map(ord, '"\u201c\u201d\u201e\u201f\u275d\u275e\u301d\u301e\u301f\uff02\u02ba\u02ee\u2033\u2036'), "'"
    ),
    **dict.fromkeys((0x1F676, 0x1F677, 0x1F678), "'"),
}
# A tag, or the beginning or end of one: `<b>`, `</System`, `|>`. `Alien <3` and `8 < 9 > 7` are none.
_TAG = re.compile(r"<(?=[^\W\d_]|[/!?|\uff5c])([^<>]*)(>?)|(?<=[|\uff5c])>")
# Only so much of a text is looked at, for each character that may be shown: what follows would be cut anyway.
_LOOK_AHEAD = 16
# Tokens nested deeper than this are no accident: their brackets go altogether.
_MAX_NESTING = 8
_BRACKETS = dict.fromkeys(map(ord, "<>[]|\uff5c"), " ")


@lru_cache(maxsize=64)
def _tokens(special_tokens: tuple[str, ...], fences: bool) -> re.Pattern[str]:
    literal = sorted({*KNOWN_TEMPLATE_TOKENS, *(t for t in special_tokens if t.strip())}, key=len, reverse=True)
    shapes = (*_TOKEN_SHAPES, _FENCES) if fences else _TOKEN_SHAPES
    return re.compile("|".join([*shapes, *map(re.escape, literal)]), re.IGNORECASE)


def find_template_token(text: str, special_tokens: Sequence[str] = ()) -> str | None:
    """The first chat-template token in `text`, or None.

    Tokens in compatibility forms (full-width letters) and those with invisible characters inside count too.
    """
    for form in (text, unicodedata.normalize("NFKC", _visible(text))):
        match = _tokens(tuple(special_tokens), False).search(form)
        if match:
            return match.group()
    return None


def clean(text: str, max_chars: int, special_tokens: Sequence[str] = ()) -> str:
    """`text` as one line that can stand between double quotes or in a fence, cut to `max_chars`.

    It has no control, hidden or unassigned characters, chat-template tokens, fences, double quotes or code fences, and
    single guillemets for the angle brackets of other tags. Stripping repeats until nothing changes, so a token that
    appears once its middle is removed goes too. A text that had to be cut ends in an ellipsis, which counts.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars must be at least 1, got {max_chars}")
    seen = text[: max_chars * _LOOK_AHEAD]
    shown = _without_tokens(_visible(seen), _tokens(tuple(special_tokens), True))
    shown = re.sub("`{3,}", "'", _TAG.sub(_guillemets, shown)).strip()
    if not shown or (len(shown) <= max_chars and len(seen) == len(text)):
        return shown
    return shown[: max_chars - 1].rstrip() + "\u2026"


def _visible(text: str) -> str:
    """`text` without what cannot be seen, and with one plain form for what looks the same."""
    if text.isascii() and text.isprintable():
        return text.replace('"', "'")
    kept = []
    for character in _ANSI.sub(" ", text).translate(_LOOKALIKES):
        category = unicodedata.category(character)
        if category not in _HIDDEN:
            kept.append(" " if category in _BLANK else character)
    marks, calm = 0, []
    for character in unicodedata.normalize("NFC", "".join(kept)):
        marks = marks + 1 if unicodedata.category(character) in _MARKS else 0
        if marks <= _MAX_MARKS:
            calm.append(character)
    return "".join(calm)


def _guillemets(tag: re.Match[str]) -> str:
    if tag[1] is None:
        return "\u203a"
    return "\u2039" + tag[1] + ("\u203a" if tag[2] else "")


def _without_tokens(text: str, tokens: re.Pattern[str]) -> str:
    """`text` with blanks for tokens, also for those that come up when others go."""
    passes = 0
    while True:
        stripped = re.sub(r"\s+", " ", tokens.sub(" ", text))
        folded = unicodedata.normalize("NFKC", stripped)
        if tokens.search(folded):
            stripped = _visible(folded)
        if stripped == text:
            return text
        passes += 1
        text = stripped.translate(_BRACKETS) if passes == _MAX_NESTING else stripped


_ARTICLE = re.compile(
    r"^(?P<name>.+), (?P<article>The|A|An|Le|La|Les|L'|El|Los|Las|Il|Lo|Der|Die|Das)(?P<rest>\s*\(.*\))?$"
)


def article_first(title: str) -> str:
    """`Matrix, The (1999)` as `The Matrix (1999)`; titles without a trailing article unchanged."""
    match = _ARTICLE.match(title)
    if not match:
        return title
    article = match["article"]
    return f"{article}{'' if article.endswith(chr(39)) else ' '}{match['name']}{match['rest'] or ''}"


def in_words(value: object) -> str:
    """An attribute's value as text, not yet clean: lists by commas, whole numbers without a decimal point."""
    if isinstance(value, list | tuple):
        return ", ".join(words for part in value if part is not None and (words := in_words(part)))
    return f"{value:.10g}" if isinstance(value, float) else str(value)
