"""Cleaning of untrusted catalogue text before it stands inside a prompt.

A title is data. It must not end the field it stands in, open a chat turn, or hide characters that a reader of the
prompt cannot see.
"""

import re
import unicodedata
from collections.abc import Sequence

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
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)
# <|im_start|>, <|eot_id|>, <|endoftext|>, DeepSeek's full-width bars, and whatever the next family invents.
_BARRED = r"<[|\uff5c][^<>]{0,60}?[|\uff5c]>"
# The tags that fence data in our own templates.
_FENCES = r"</?\s*(?:history|item)\s*>"


def _pattern(special_tokens: Sequence[str]) -> re.Pattern[str]:
    literal = sorted({*KNOWN_TEMPLATE_TOKENS, *(t for t in special_tokens if t.strip())}, key=len, reverse=True)
    return re.compile("|".join([_BARRED, *map(re.escape, literal)]), re.IGNORECASE)


def find_template_token(text: str, special_tokens: Sequence[str] = ()) -> str | None:
    """The first chat-template token in `text`, or None. Compatibility forms (full-width letters) count too."""
    for form in (text, unicodedata.normalize("NFKC", text)):
        match = _pattern(special_tokens).search(form)
        if match:
            return match.group()
    return None


def clean(text: str, max_chars: int, special_tokens: Sequence[str] = ()) -> str:
    """`text` as one line without control characters, template tokens, fences and double quotes, cut to `max_chars`.

    Stripping repeats until nothing changes, so a token that appears once its middle is removed goes too. A text that
    had to be cut ends in an ellipsis, which counts towards `max_chars`.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars must be at least 1, got {max_chars}")
    strip = re.compile(f"{_pattern(special_tokens).pattern}|{_FENCES}", re.IGNORECASE)
    text = unicodedata.normalize("NFC", text)
    # Cc: control, Cf: zero-width and bidirectional marks, Cs: lone surrogates, Co/Cn: no agreed meaning.
    text = "".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp", "Zs"} else c for c in text)
    text = "".join(c for c in text if unicodedata.category(c) not in {"Cf", "Cs", "Co", "Cn"})
    before = None
    while before != text:
        before = text
        text = strip.sub(" ", text)
        folded = unicodedata.normalize("NFKC", text)
        if strip.search(folded):
            text = folded
    text = re.sub(r"\s+", " ", text.replace('"', "'").replace("\u201c", "'").replace("\u201d", "'")).strip()
    return text if len(text) <= max_chars else text[: max_chars - 1].rstrip() + "\u2026"


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
