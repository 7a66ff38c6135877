"""Languages: which one a text is in, by the share of its words that are that language's most frequent ones.

Stop-word profiles need no model and are sure where it matters: in running text of one language about four words of ten
are on its list, of another rarely one. Languages with a script of their own are told by it. Quotations are set aside
by the caller: a title may be in any language.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

# Scripts that settle the language. Kana comes before Han: Japanese has both.
SCRIPTS = {
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "zh": re.compile(r"[\u3400-\u9fff]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
    "ru": re.compile(r"[\u0400-\u04ff]"),
    "el": re.compile(r"[\u0370-\u03ff]"),
    "ar": re.compile(r"[\u0600-\u06ff]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "hi": re.compile(r"[\u0900-\u097f]"),
}


def profile(words: Sequence[str]) -> dict[str, float]:
    """Share of `words` (0 to 1) that speak for each language: its stop words, or words in its script."""
    counts = Counter(words)
    scores: Counter[str] = Counter()
    total = max(len(words), 1)
    for word, count in counts.items():
        if word.isascii():
            for language in _languages_of().get(word, ()):
                scores[language] += count
            continue
        script = next((name for name, letters in SCRIPTS.items() if letters.search(word)), None)
        for language in (script,) if script else _languages_of().get(word, ()):
            scores[language] += count
    shares = {language: scores[language] / total for language in known_languages()}
    if shares["ja"] >= 0.1 * shares["zh"]:
        shares["ja"], shares["zh"] = shares["ja"] + shares["zh"], 0.0
    return shares


def leading(shares: Mapping[str, float], min_share: float, min_ratio: float) -> str | None:
    """The language with the highest share, or None when that is below `min_share` or not `min_ratio` times the next."""
    ranked = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    (best, share), (_, second) = ranked[0], ranked[1]
    return best if share >= min_share and share >= min_ratio * second else None


@cache
def stop_words() -> dict[str, tuple[str, ...]]:
    """The shipped lists by language (ISO 639-1)."""
    raw = tomllib.loads(files("augment.quality").joinpath("stopwords.toml").read_text(encoding="utf-8"))
    return {language: tuple(words.split()) for language, words in raw.items()}


@cache
def known_languages() -> tuple[str, ...]:
    """Every language that can be told, sorted."""
    return tuple(sorted({*stop_words(), *SCRIPTS}))


@cache
def _languages_of() -> dict[str, tuple[str, ...]]:
    words = {word for listed in stop_words().values() for word in listed}
    return {word: tuple(name for name, listed in stop_words().items() if word in listed) for word in words}
