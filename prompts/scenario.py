"""Scenario files: what a domain calls its things, which factors matter in it, and which fields a prompt may show."""

import tomllib
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError, field_validator

from warehouse.errors import ConfigError

SHIPPED = ("movies", "books", "music", "news", "shop")

# What names a user never stands in a prompt, under any label.
_USER_ID = "user_id"


class ValueUnit(BaseModel, frozen=True, extra="forbid"):
    """How `behaviours.value` reads in a history line: `4 stars`."""

    singular: str
    plural: str


class Scenario(BaseModel, frozen=True, extra="forbid"):
    """A domain: its words, its factors (KAR's factorization prompting) and the fields that may be shown."""

    name: str
    noun: str
    noun_plural: str
    consumed: str
    user_factors: tuple[str, ...] = Field(min_length=1)
    item_factors: tuple[str, ...] = Field(min_length=1)
    trailing_article_first: bool = False
    value: ValueUnit | None = None
    # Attribute column -> label. Nothing else of a user or an item reaches a prompt.
    item_fields: dict[str, str] = {}
    user_fields: dict[str, str] = {}
    # A file for many catalogues names columns that one of them may lack; one's own file should name what is there.
    optional_fields: bool = False
    max_title_chars: int = Field(150, ge=8)
    max_field_chars: int = Field(300, ge=8)
    # For the lint alone: other names of the domain's things, words that are at home in no other shipped domain, and
    # shipped domains whose words are at home here too.
    also_called: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    kin: tuple[str, ...] = ()

    @field_validator("item_fields", "user_fields")
    @classmethod
    def _no_user_id(cls, fields: dict[str, str]) -> dict[str, str]:
        for column in fields:
            if column.strip().casefold() == _USER_ID:
                raise ValueError(f"`{column}` names a user, and no user id ever reaches a prompt. Take that line out")
        return fields

    def what_prompts_show(self) -> dict[str, object]:
        """All of the scenario that prompts depend on: a change of the rest makes no new prompt version."""
        return self.model_dump(exclude={"optional_fields", "also_called", "marks", "kin"})


def load_scenario(name_or_path: str) -> Scenario:
    """The shipped scenario of that name, or the one in the file at that path.

    Raises ConfigError where there is neither, or where the file is not a scenario.
    """
    if name_or_path in SHIPPED:
        source = f"the shipped scenario `{name_or_path}`"
        text = files("prompts").joinpath("scenarios", f"{name_or_path}.toml").read_text(encoding="utf-8")
    else:
        path = Path(name_or_path)
        source = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"`prompts.scenario` is {name_or_path!r}: it is no shipped scenario ({', '.join(SHIPPED)}) and no "
                f"readable file ({error.strerror or error}). Name one of these, or the path of a scenario file."
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"The scenario file {source} is not UTF-8: {error}. Save it as UTF-8.") from error
    return parse_scenario(text, source)


def parse_scenario(text: str, source: str) -> Scenario:
    """The scenario written in TOML; `source` says in messages where it stands. Raises ConfigError."""
    try:
        return Scenario.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}. Mend that line.") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(
            f"{source} is not a scenario: {faults}. Compare with prompts/scenarios/movies.toml."
        ) from error
