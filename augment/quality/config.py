"""The settings of the quality gate: section `[quality]` of the configuration."""

from typing import Annotated

from pydantic import BaseModel, Field, field_validator

from augment.quality.language import known_languages
from augment.quality.status import Status

Share = Annotated[float, Field(ge=0, le=1)]


class QualityConfig(BaseModel, frozen=True, extra="forbid"):
    """Thresholds of every rule. Shares run from 0 to 1; a text is rejected above a `max_` and below a `min_`.

    The defaults are conservative: a good text that is rejected was paid for in vain. Where they come from is said at
    each; `benchmarks/quality_corpora.py` measures them over other texts.
    """

    # Off, only what cannot be encoded or is cut is kept back: statuses empty and truncated.
    enabled: bool = True
    # Ask once more for a text with one of these statuses, as far as the budget allows.
    retry: bool = True
    # Not truncated: the same limit would cut the next answer too. Raise engine.max_new_tokens instead.
    retryable: tuple[Status, ...] = (
        Status.EMPTY,
        Status.REFUSED,
        Status.REPETITIVE,
        Status.OFF_TOPIC,
        Status.LEAKED_PROMPT,
    )

    # One word ("Unknown.") is no knowledge; two may be ("Likes lamps.").
    min_words: int = Field(2, ge=1)
    # No answer to one of our questions is as long as a chapter: what was imported by mistake is. Of REKI's texts
    # about groups the longest has 1,399 words.
    max_words: int = Field(5000, ge=1)

    # Repetition, after MassiveText (arXiv 2112.11446, table A1), where lines and paragraphs have 0.30 by number and
    # 0.20 by characters, frequent n-grams 0.20, 0.18 and 0.16, duplicate n-grams 0.15 falling to 0.10. Of web pages
    # there are always others; an answer is paid for, and one that goes through nine factors of fifteen titles rightly
    # repeats its headings ("Setting: contemporary"). Hence wider limits, but for n-grams that are frequent. A sentence
    # said ten times over has 0.9.
    max_duplicate_line_share: Share = 0.50
    max_duplicate_line_char_share: Share = 0.50
    max_duplicate_paragraph_share: Share = 0.50
    max_duplicate_paragraph_char_share: Share = 0.50
    # For n = 2, 3, 4.
    max_frequent_ngram_share: tuple[Share, Share, Share] = (0.20, 0.18, 0.16)
    # A phrase is frequent from this many occurrences on; below, a short text would fail by any phrase said twice.
    frequent_min_count: int = Field(4, ge=2)
    # For n = 5, 6, 7, 8, 9, 10.
    max_duplicate_ngram_share: tuple[Share, Share, Share, Share, Share, Share] = (0.50, 0.48, 0.46, 0.44, 0.42, 0.40)

    # Refusals: words in sentences that refuse, make excuses, hedge or mend the question, those that only say that
    # things vary counted half. Of hand-read answers about groups of books, those above 0.50 held little but guesses
    # from titles; between 0.45 and 0.50 every other one still had something to say.
    max_evasive_share: Share = 0.50
    # The same where one of the first three sentences refuses outright: what follows is mostly about movies or books in
    # general. Below, the refusal was of a detail.
    max_evasive_share_after_refusal: Share = 0.12

    # Factors touched, of those asked about. Asked about nine, an answer of forty words that touches none or one is
    # about something else. Shorter answers are not judged: brevity is not aimlessness.
    min_factor_share: Share = 0.20
    factor_min_words: int = Field(40, ge=1)

    # Copying of the prompt's own sentences, its data aside. Share of the answer that stands in them, in runs of eight
    # words.
    max_copied_share: Share = 0.40
    # Share of them that stands in the answer; taking up the question is no leak, so it must be so many words too.
    max_echoed_share: Share = 0.50
    echo_min_words: int = Field(20, ge=1)

    # Quoted titles that neither prompt nor catalogue knows. Judged only from so many titles on and where the catalogue
    # is known: naming a work outside it is knowledge, naming hardly any inside it is another conversation.
    max_ungrounded_title_share: Share = 0.80
    grounding_min_titles: int = Field(5, ge=1)

    # Language of the answer (ISO 639-1); "prompt" expects that of the prompt's own sentences, "any" (or None, which
    # TOML cannot say) none. Quotations are set aside, so an answer in English about German titles is in English.
    language: str | None = "prompt"
    # Too few words have no language.
    language_min_words: int = Field(20, ge=1)
    # A text is in a language when this share of its words are that language's most frequent ones (about 0.4 in running
    # text), and so many times more than any other's.
    language_min_share: Share = 0.15
    language_min_ratio: float = Field(1.5, ge=1)

    @field_validator("language")
    @classmethod
    def _known(cls, language: str | None) -> str | None:
        if language in (None, "any"):
            return None
        if language != "prompt" and language not in known_languages():
            raise ValueError(f'use "prompt", "any", or one of {", ".join(known_languages())}')
        return language

    @field_validator("retryable")
    @classmethod
    def _not_ok(cls, statuses: tuple[Status, ...]) -> tuple[Status, ...]:
        if Status.OK in statuses:
            raise ValueError("a text that is ok is never asked for again: leave out ok")
        return statuses
