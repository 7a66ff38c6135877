"""The seam between planning and any engine that turns prompts into text."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from augment.speculation.pool import PoolIdentity


@dataclass(frozen=True)
class Request:
    """One call to make. `group` names the retrieval pool that may draft for it (None: no preference).

    `attempt` above 0 asks again after an answer that was no use, with the sampling of `sampling_of_attempt`.
    """

    request_key: str
    prompt: str
    group: str | None = None
    attempt: int = 0


# Warm enough that a greedy answer which ran into a loop leaves it, cool enough to keep to the question.
_RETRY_TEMPERATURE = 0.7


def sampling_of_attempt(temperature: float, seed: int, attempt: int) -> tuple[float, int]:
    """The temperature and seed of an attempt; attempt 0 is as configured.

    A greedy answer would come out the same again, so a later attempt samples, with the attempt's number as its seed. A
    sampled one gets half the temperature, where models stray less, and another seed. Attempts share the request's key:
    they are tries at one call, and which of them gave the text is stored with it.
    """
    if attempt == 0:
        return temperature, seed
    if temperature == 0.0:
        return _RETRY_TEMPERATURE, attempt
    return temperature / 2, seed + attempt


@dataclass(frozen=True)
class Completion:
    """What a call returned. `finish_reason` is `stop` or `length`.

    With speculation: draft tokens verified, how many of them stand in the text, how many of these only thanks to
    relaxed verification, decoding steps (the prompt's aside), and the digest of the pool; None without.
    """

    request_key: str
    text: str
    finish_reason: str
    tokens_in: int
    tokens_out: int
    drafted: int | None = None
    accepted: int | None = None
    relaxed: int | None = None
    steps: int | None = None
    pool_id: str | None = None


class Engine(Protocol):
    """A maker of text. `model`, `revision`, `sampling` and `verification` enter every request key."""

    @property
    def model(self) -> str: ...

    @property
    def revision(self) -> str: ...

    @property
    def sampling(self) -> Mapping[str, object]: ...

    @property
    def verification(self) -> str:
        """`strict`, or the rule of relaxed verification."""
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions as they finish, in any order, one per request."""
        ...

    def close(self) -> None:
        """Free the model. A closed engine may not be used again."""
        ...


@runtime_checkable
class DraftingEngine(Engine, Protocol):
    """An engine that can draft from a retrieval pool."""

    def draft_from(self, pool: Path, identity: "PoolIdentity") -> None:
        """Draft from the saved `pool` from the next call on. Raises what RetrievalPool.load does."""
        ...

    def speculation_summary(self) -> dict[str, object]:
        """What drafting did since the engine was made: counts, tokens per step, cost and gain; {} without it."""
        ...
