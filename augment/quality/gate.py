"""The quality gate: one status for every answer, with the measure that decided it.

Several rules may hold at once; the status is the first of

    empty          nothing is there to judge
    off_topic      it is far too long for an answer
    leaked_prompt  the text is not the model's own words
    repetitive     before truncated: a loop runs into the token limit, and a higher limit would pay for more of it
    refused        likewise, and a filtered answer is a refusal whatever of it was let through
    truncated      before off_topic: half an answer covers half the factors
    off_topic      by language, then factors, then titles

so that it names the fault that has to be mended first. The measures hold all of them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from augment.quality.config import QualityConfig
from augment.quality.copying import copying, leaked_token
from augment.quality.coverage import coverage, factor_stems
from augment.quality.grounding import catalogue_keys, grounding
from augment.quality.language import leading, profile
from augment.quality.refusal import hedging
from augment.quality.repetition import DUPLICATE, FREQUENT, repetition
from augment.quality.status import Status
from augment.quality.words import instructions, split_sentences, split_words, unquoted

# OpenAI-compatible servers report it when a filter cut the answer.
FILTERED = "content_filter"
FINISHED = "stop"


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one text: `reason` gives the value and the threshold it passed, None when ok."""

    status: Status
    reason: str | None
    measures: Mapping[str, float]


class QualityGate:
    """Judges answers by `config`; holds the words of the factors and the names of the catalogue, and no other state.

    `factors` are those asked about, by kind of knowledge; a kind without any is not judged by coverage. `names` are
    the titles and attribute values of the catalogue; without any, quoted titles are not judged. `special_tokens` are
    the model's own, looked for beside the well-known ones.
    """

    def __init__(
        self,
        config: QualityConfig,
        factors: Mapping[str, Sequence[str]],
        names: Collection[str] = (),
        special_tokens: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._factors = {kind: tuple(listed) for kind, listed in factors.items()}
        self._stems = {kind: factor_stems(listed) for kind, listed in factors.items()}
        self._known = catalogue_keys(names)
        self._special_tokens = tuple(special_tokens)

    def judge(self, kind: str, prompt: str, text: str, finish_reason: str) -> Verdict:
        """The verdict on `text`, the answer to `prompt`. The same arguments always give the same verdict."""
        config = self._config
        sentences = split_sentences(text)
        words = [word for sentence in sentences for word in sentence]
        measures = {"words": float(len(words))}
        if not text.strip() or (config.enabled and len(words) < config.min_words):
            reason = f"words is {len(words)}, below quality.min_words = {config.min_words}."
            return Verdict(Status.EMPTY, reason, measures)
        if config.enabled and len(words) > config.max_words:
            # Before all that would take time over so many.
            reason = f"words is {len(words)}, above quality.max_words = {config.max_words}."
            return Verdict(Status.OFF_TOPIC, reason, measures)
        if not config.enabled:
            cut = _cut(finish_reason)
            return Verdict(Status.TRUNCATED if cut else Status.OK, cut, measures)
        measures |= repetition(text, config.frequent_min_count)
        measures |= hedging(sentences)
        measures["evasive_share"] = measures["hedged_share"] + measures["vague_share"] / 2
        measures |= copying(prompt, words, self._factors.get(kind, ()), self._known)
        measures |= grounding(prompt, text, self._known)
        measures["factor_share"] = coverage(self._stems.get(kind, ()), words)
        found = next(self._faults(kind, prompt, text, finish_reason, measures), None)
        return Verdict(found[0] if found else Status.OK, found[1] if found else None, measures)

    def retryable(self, status: Status) -> bool:
        """Whether a text with this status is asked for once more."""
        return self._config.enabled and self._config.retry and status in self._config.retryable

    def _faults(
        self, kind: str, prompt: str, text: str, finish_reason: str, measures: Mapping[str, float]
    ) -> Iterator[tuple[Status, str]]:
        """Every fault with its reason, in order of precedence."""
        config = self._config
        token = leaked_token(prompt, text, self._special_tokens)
        if token:
            yield Status.LEAKED_PROMPT, f"token is {token!r}, which is the prompt's or the chat template's."
        yield from self._above(Status.LEAKED_PROMPT, measures, "copied_share", config.max_copied_share)
        if measures["echoed_words"] >= config.echo_min_words:
            yield from self._above(Status.LEAKED_PROMPT, measures, "echoed_share", config.max_echoed_share)
        for name, setting, limit in _repetition_limits(config):
            yield from self._above(Status.REPETITIVE, measures, name, limit, setting)
        if finish_reason == FILTERED:
            yield Status.REFUSED, f"finish_reason is {finish_reason!r}."
        if measures["opens_with_refusal"]:
            limit, setting = config.max_evasive_share_after_refusal, "max_evasive_share_after_refusal"
            yield from self._above(Status.REFUSED, measures, "evasive_share", limit, setting)
        yield from self._above(Status.REFUSED, measures, "evasive_share", config.max_evasive_share)
        cut = _cut(finish_reason)
        if cut:
            yield Status.TRUNCATED, cut
        yield from self._off_topic(kind, prompt, text, measures)

    def _off_topic(
        self, kind: str, prompt: str, text: str, measures: Mapping[str, float]
    ) -> Iterator[tuple[Status, str]]:
        config = self._config
        asked, found = self._language(instructions(prompt)), self._language(unquoted(text))
        expected = asked if config.language == "prompt" else config.language
        if expected and found and found != expected:
            yield Status.OFF_TOPIC, f"language is {found!r}, not {expected!r} (quality.language)."
        # Factors and their words are in the prompt's language: an answer in another one does not hold them.
        comparable = asked is not None and found in (None, asked) and measures["words"] >= config.factor_min_words
        if comparable and measures["factor_share"] < config.min_factor_share:
            value, limit = measures["factor_share"], config.min_factor_share
            yield Status.OFF_TOPIC, f"factor_share is {value:.2f}, below quality.min_factor_share = {limit:g}."
        if self._known and measures["quoted_titles"] >= config.grounding_min_titles:
            share = config.max_ungrounded_title_share
            yield from self._above(Status.OFF_TOPIC, measures, "ungrounded_title_share", share)

    def _language(self, text: str) -> str | None:
        """The language of `text`, None where it cannot be told."""
        words = split_words(text)
        if len(words) < self._config.language_min_words:
            return None
        return leading(profile(words), self._config.language_min_share, self._config.language_min_ratio)

    @staticmethod
    def _above(
        status: Status, measures: Mapping[str, float], name: str, limit: float, setting: str | None = None
    ) -> Iterator[tuple[Status, str]]:
        """The fault that `measures[name]` is above `limit`, which `setting` (by default `max_` and the name) holds."""
        if measures[name] > limit:
            yield status, f"{name} is {measures[name]:.2f}, above quality.{setting or 'max_' + name} = {limit:g}."


def _cut(finish_reason: str) -> str | None:
    return None if finish_reason == FINISHED else f"finish_reason is {finish_reason!r}, not {FINISHED!r}."


def _repetition_limits(config: QualityConfig) -> Iterator[tuple[str, str, float]]:
    """Measure, setting and limit of every rule of repetition."""
    for unit in ("line", "paragraph"):
        for name in (f"duplicate_{unit}_share", f"duplicate_{unit}_char_share"):
            yield name, f"max_{name}", getattr(config, f"max_{name}")
    for n, limit in zip(FREQUENT, config.max_frequent_ngram_share, strict=True):
        yield f"frequent_{n}gram_share", "max_frequent_ngram_share", limit
    for n, limit in zip(DUPLICATE, config.max_duplicate_ngram_share, strict=True):
        yield f"duplicate_{n}gram_share", "max_duplicate_ngram_share", limit
