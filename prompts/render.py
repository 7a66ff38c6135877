"""Rendering of prompts: scenario + template + cleaned data -> text, and the version that names all that makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Literal

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, Field

from prompts.hygiene import article_first, clean, in_words
from prompts.scenario import Scenario
from prompts.timespan import coverage
from warehouse.errors import LorestreamError
from warehouse.keys import digest

# Raise when code rather than a template changes what a prompt says (cleaning, the wording of time), so that old texts
# are not taken for answers to new prompts.
RENDERING_VERSION = 2


class Kind(StrEnum):
    """What is asked about whom; each kind has the template of its name."""

    USER_SUMMARY = "user_summary"
    USER_SHIFT = "user_shift"
    ITEM_FACTS = "item_facts"
    GROUP_LIKES = "group_likes"
    GROUP_DISLIKES = "group_dislikes"
    GROUP_ITEMS = "group_items"


class PromptOptions(BaseModel, frozen=True, extra="forbid"):
    """How a user's history is shown, whatever the domain."""

    # values: every event with its value, as in KAR. split: what the user liked and what the user turned down, apart.
    # liked: only what the user liked.
    feedback: Literal["values", "split", "liked"] = "values"
    # The time that a partition covers, and the gap between it and the one before.
    show_time: bool = True
    # Of an earlier summary that stands in a prompt. An answer of 400 tokens has about 2,000 characters.
    max_previous_chars: int = Field(2000, ge=100)


DEFAULT_OPTIONS = PromptOptions()

# Options that a kind's prompts depend on: a changed option makes new versions of these kinds only.
_OPTIONS_OF = {
    Kind.USER_SUMMARY: {"feedback", "show_time", "max_previous_chars"},
    Kind.USER_SHIFT: {"show_time", "max_previous_chars"},
}


class EmptyPrompt(LorestreamError):
    """A prompt with nothing to ask about; the planner makes no call for it."""

    def __init__(self, kind: str, entity: str) -> None:
        self.kind, self.entity = kind, entity
        need = "both summaries" if kind == Kind.USER_SHIFT else "at least one title"
        super().__init__(f"A `{kind}` prompt for {entity} would be empty. Give it {need}.")


@dataclass(frozen=True)
class HistoryLine:
    """One event as a prompt shows it: the item's title, the event's value, and whether that is positive feedback.

    `liked` may be None where all events are shown by value.
    """

    title: str
    value: float
    liked: bool | None = None


@dataclass(frozen=True)
class Span:
    """When a partition's events happened, and when the partition before it ended (None: there is none)."""

    opened_at: datetime
    sealed_at: datetime
    previous_end: datetime | None = None


@dataclass(frozen=True)
class _Section:
    """A fenced list of a user's history: the fence's tag, what is in it, what it is asked for, and its lines."""

    fence: str
    holds: str
    asks: str
    lines: list[str]


@cache
def _sources() -> dict[Kind, str]:
    """The text of every kind's template."""
    folder = files("prompts").joinpath("templates")
    return {kind: folder.joinpath(f"{kind}.j2").read_text(encoding="utf-8") for kind in Kind}


@cache
def _templates() -> dict[Kind, Template]:
    environment = SandboxedEnvironment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
        autoescape=False,
    )
    return {kind: environment.from_string(source) for kind, source in _sources().items()}


class PromptWriter:
    """Prompts of one scenario for one model; holds no state between calls.

    `special_tokens` are the model's own, stripped from every untrusted text beside the well-known ones.
    """

    def __init__(
        self, scenario: Scenario, special_tokens: Sequence[str] = (), options: PromptOptions = DEFAULT_OPTIONS
    ) -> None:
        self.scenario, self.options = scenario, options
        self._special = tuple(special_tokens)

    def version(self, kind: Kind) -> str:
        """16 hex digits naming the scenario, the template, the options and the code that make this kind's prompts."""
        return digest(
            {
                "scenario": self.scenario.what_prompts_show(),
                "template": _sources()[kind],
                "options": self.options.model_dump(include=_OPTIONS_OF.get(kind, set())),
                "rendering": RENDERING_VERSION,
            }
        )[:16]

    def user_summary(
        self,
        history: Sequence[HistoryLine],
        profile: Mapping[str, object] | None = None,
        span: Span | None = None,
        previous: str | None = None,
    ) -> str:
        """The prompt that asks for a user's preferences in one partition, oldest event first (KAR, LIBER).

        `previous` is the summary of an earlier partition (cascade = "summary"). `profile` shows only columns the
        scenario names. Raises EmptyPrompt without a single titled event to show, ValueError when feedback is shown
        but an event does not say whether it is positive.
        """
        sections = [section for section in self._sections(history) if section.lines]
        if not sections:
            liked = " liked" if self.options.feedback == "liked" else ""
            raise EmptyPrompt(Kind.USER_SUMMARY, f"a partition without{liked} titles")
        return self._render(
            Kind.USER_SUMMARY,
            profile=[f"{label} {value}" for label, value in self._fields(self.scenario.user_fields, profile or {})],
            previous=self._summary(previous or ""),
            feedback=self.options.feedback,
            time=self._time("This history", span),
            sections=sections,
        )

    def user_shift(self, previous: str, current: str, span: Span | None = None) -> str:
        """The prompt that asks what is new in the current summary over the one before it (LIBER).

        `span` is the current partition's. Raises EmptyPrompt when nothing is left of either text.
        """
        texts = {"previous": self._summary(previous), "current": self._summary(current)}
        for name, text in texts.items():
            if not text:
                raise EmptyPrompt(Kind.USER_SHIFT, f"a user whose {name} summary has no text")
        return self._render(Kind.USER_SHIFT, time=self._time("The history behind the current summary", span), **texts)

    def item_facts(self, title: str, attributes: Mapping[str, object] | None = None) -> str:
        """The prompt that asks for an item's facts (KAR). Raises EmptyPrompt when nothing of the title is left."""
        name = self._title(title)
        if not name:
            raise EmptyPrompt(Kind.ITEM_FACTS, f"the title {title[:80]!r}")
        return self._render(
            Kind.ITEM_FACTS, title=name, fields=self._fields(self.scenario.item_fields, attributes or {})
        )

    def group(self, kind: Kind, titles: Sequence[str], size: int) -> str:
        """The prompt that asks what a group of `size` users or items has in common (REKI).

        `titles` are the items that stand for it: liked or turned down by its users, or in it. Equal titles are shown
        once. Raises EmptyPrompt when no title is left, ValueError for another kind or a group of nobody.
        """
        if kind not in (Kind.GROUP_LIKES, Kind.GROUP_DISLIKES, Kind.GROUP_ITEMS):
            raise ValueError(f"`{kind}` is not about a group")
        if size < 1:
            raise ValueError(f"A group has at least one member, got {size}")
        names = dict.fromkeys(name for name in map(self._title, titles) if name)
        if not names:
            raise EmptyPrompt(kind, f"a group of {size} without titles")
        members = "One user" if size == 1 else f"A group of {size} users with similar tastes"
        return self._render(kind, members=members, size=size, titles=[f'"{name}"' for name in names])

    def _render(self, kind: Kind, **data: object) -> str:
        return _templates()[kind].render(scenario=self.scenario, **data).strip()

    def _sections(self, history: Sequence[HistoryLine]) -> list[_Section]:
        if self.options.feedback == "values":
            return [_Section("history", "what the user took up", "preferences", self._lines(history))]
        if any(event.liked is None for event in history):
            raise ValueError(f"feedback = {self.options.feedback!r} needs to know of every event whether it is liked")
        liked = _Section("liked", "what the user liked", "preferences", self._lines([e for e in history if e.liked]))
        if self.options.feedback == "liked":
            return [liked]
        others = self._lines([event for event in history if not event.liked])
        return [liked, _Section("turned_down", "what the user turned down", "dislikes", others)]

    def _lines(self, history: Sequence[HistoryLine]) -> list[str]:
        return [line for line in map(self._line, history) if line]

    def _line(self, event: HistoryLine) -> str:
        name = self._title(event.title)
        if not name:
            return ""
        unit = self.scenario.value
        if unit is None:
            return f'"{name}"'
        return f'"{name}" ({event.value:g} {unit.singular if event.value == 1 else unit.plural})'

    def _title(self, title: str) -> str:
        name = clean(title, self.scenario.max_title_chars, self._special)
        shown = article_first(name) if self.scenario.trailing_article_first else name
        # What the article parted may come together as a token once it stands in front.
        return name if shown == name else clean(shown, self.scenario.max_title_chars, self._special)

    def _summary(self, text: str) -> str:
        """A text of a language model, which may hold anything, as one capped line."""
        return clean(text, self.options.max_previous_chars, self._special)

    def _time(self, subject: str, span: Span | None) -> str:
        if span is None or not self.options.show_time:
            return ""
        return coverage(subject, span.opened_at, span.sealed_at, span.previous_end)

    def _fields(self, labels: Mapping[str, str], values: Mapping[str, object]) -> list[tuple[str, str]]:
        shown = []
        for column, label in labels.items():
            value = values.get(column)
            if value is None:
                continue
            text = clean(in_words(value), self.scenario.max_field_chars, self._special)
            if text:
                shown.append((label, text))
        return shown
