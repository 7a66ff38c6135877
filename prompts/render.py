"""Rendering of prompts: scenario + template + cleaned data -> text, and the version that names the three."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment

from prompts.hygiene import article_first, clean
from prompts.scenario import Scenario
from warehouse.errors import LorestreamError
from warehouse.keys import digest

# Raise when `hygiene` changes what a prompt says, so that old texts are not taken for answers to new prompts.
HYGIENE_VERSION = 1


class Kind(StrEnum):
    """What is asked about whom."""

    USER_SUMMARY = "user_summary"
    ITEM_FACTS = "item_facts"


class EmptyPrompt(LorestreamError):
    """A prompt with nothing to ask about; the planner makes no call for it."""

    def __init__(self, kind: str, entity: str) -> None:
        self.kind, self.entity = kind, entity
        super().__init__(f"A `{kind}` prompt for {entity} would be empty. Give it at least one title.")


@dataclass(frozen=True)
class HistoryLine:
    """One event as a prompt shows it: the item's title and the event's value."""

    title: str
    value: float


class PromptWriter:
    """Prompts of one scenario for one model; holds no state between calls.

    `special_tokens` are the model's own, stripped from every untrusted text beside the well-known ones.
    """

    def __init__(self, scenario: Scenario, special_tokens: Sequence[str] = ()) -> None:
        self.scenario = scenario
        self._special = tuple(special_tokens)
        environment = SandboxedEnvironment(
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            autoescape=False,
        )
        self._sources = {
            kind: files("prompts").joinpath("templates", f"{kind}.j2").read_text(encoding="utf-8") for kind in Kind
        }
        self._templates: dict[Kind, Template] = {
            kind: environment.from_string(source) for kind, source in self._sources.items()
        }

    def version(self, kind: Kind) -> str:
        """16 hex digits naming the scenario, the template and the cleaning rules that make this kind's prompts."""
        return digest(
            {"scenario": self.scenario.model_dump(), "template": self._sources[kind], "hygiene": HYGIENE_VERSION}
        )[:16]

    def user_summary(self, history: Sequence[HistoryLine], profile: Mapping[str, object] | None = None) -> str:
        """The prompt that asks for a user's preferences in one partition, oldest event first (KAR, LIBER).

        Raises EmptyPrompt without a single titled event. `profile` shows only columns the scenario names.
        """
        lines = [self._line(event) for event in history]
        lines = [line for line in lines if line]
        if not lines:
            raise EmptyPrompt(Kind.USER_SUMMARY, "a partition without titles")
        shown = [f"{label} {value}" for label, value in self._fields(self.scenario.user_fields, profile or {})]
        return self._templates[Kind.USER_SUMMARY].render(scenario=self.scenario, profile=shown, history=lines).strip()

    def item_facts(self, title: str, attributes: Mapping[str, object] | None = None) -> str:
        """The prompt that asks for an item's facts (KAR). Raises EmptyPrompt when nothing of the title is left."""
        name = self._title(title)
        if not name:
            raise EmptyPrompt(Kind.ITEM_FACTS, f"the title {title!r}")
        fields = self._fields(self.scenario.item_fields, attributes or {})
        return self._templates[Kind.ITEM_FACTS].render(scenario=self.scenario, title=name, fields=fields).strip()

    def _title(self, title: str) -> str:
        name = clean(title, self.scenario.max_title_chars, self._special)
        return article_first(name) if self.scenario.trailing_article_first else name

    def _line(self, event: HistoryLine) -> str:
        name = self._title(event.title)
        if not name:
            return ""
        unit = self.scenario.value
        if unit is None:
            return f'"{name}"'
        return f'"{name}" ({event.value:g} {unit.singular if event.value == 1 else unit.plural})'

    def _fields(self, labels: Mapping[str, str], values: Mapping[str, object]) -> list[tuple[str, str]]:
        shown = []
        for column, label in labels.items():
            value = values.get(column)
            if value is None:
                continue
            joined = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            text = clean(joined, self.scenario.max_field_chars, self._special)
            if text:
                shown.append((label, text))
        return shown
