"""The seam between planning and any engine that turns prompts into text."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """One call to make. `group` names the retrieval pool that may draft for it (None: no preference)."""

    request_key: str
    prompt: str
    group: str | None = None


@dataclass(frozen=True)
class Completion:
    """What a call returned. `finish_reason` is `stop` or `length`; draft counts are None without speculation."""

    request_key: str
    text: str
    finish_reason: str
    tokens_in: int
    tokens_out: int
    drafted: int | None = None
    accepted: int | None = None


class Engine(Protocol):
    """A maker of text. `model`, `revision` and `sampling` enter every request key."""

    @property
    def model(self) -> str: ...

    @property
    def revision(self) -> str: ...

    @property
    def sampling(self) -> Mapping[str, object]: ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions as they finish, in any order, one per request."""
        ...

    def close(self) -> None:
        """Free the model. A closed engine may not be used again."""
        ...
