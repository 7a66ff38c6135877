"""A deterministic engine for unit tests: real interface, made-up answers, no model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from zlib import crc32

from augment.engine.base import Completion, Request
from augment.engine.errors import EngineFailed
from augment.speculation.pool import PoolIdentity, RetrievalPool


class ScriptedEngine:
    """Answers from a function or a table of prompts; tokens are words parted by blanks.

    Like a real engine it pulls requests lazily, holds up to `max_concurrent` of them, and finishes them out of order:
    of those it holds, the one with the smallest CRC-32 of its key comes first. After `fail_after` completions it
    raises EngineFailed, as an engine does that runs out of memory. `prompts` lists what was asked, in order of answers;
    `pool` is what it was told to draft from, which changes nothing.
    """

    def __init__(
        self,
        answer: Callable[[str], str] | Mapping[str, str],
        *,
        model: str = "scripted",
        revision: str = "0",
        max_new_tokens: int = 512,
        max_concurrent: int = 4,
        fail_after: int | None = None,
    ) -> None:
        self._answer = answer.__getitem__ if isinstance(answer, Mapping) else answer
        self._model, self._revision = model, revision
        self._max_new_tokens, self._max_concurrent, self._fail_after = max_new_tokens, max_concurrent, fail_after
        self._closed = False
        self.prompts: list[str] = []
        self.pool: Path | None = None

    @property
    def model(self) -> str:
        return self._model

    @property
    def revision(self) -> str:
        return self._revision

    @property
    def sampling(self) -> Mapping[str, object]:
        return {"max_new_tokens": self._max_new_tokens, "temperature": 0.0}

    @property
    def verification(self) -> str:
        return "strict"

    def draft_from(self, pool: Path, identity: PoolIdentity) -> None:
        """Remember the pool, once it was checked as by any engine."""
        RetrievalPool.load(pool, identity)
        self.pool = pool

    def speculation_summary(self) -> dict[str, object]:
        return {} if self.pool is None else {"pool": self.pool.name}

    @property
    def calls(self) -> int:
        """How many answers were given."""
        return len(self.prompts)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions out of order, one per request. Raises EngineFailed after `fail_after` of them."""
        assert not self._closed, "a closed engine may not be used again"
        source = iter(requests)
        held: list[Request] = []
        while True:
            while len(held) < self._max_concurrent and (request := next(source, None)) is not None:
                held.append(request)
            if not held:
                return
            held.sort(key=lambda r: (crc32(r.request_key.encode()), r.request_key))
            if self._fail_after is not None and self.calls >= self._fail_after:
                raise EngineFailed(self._model, "generate", f"told to fail after {self._fail_after}", "Run again.")
            yield self._complete(held.pop(0))

    def close(self) -> None:
        """Nothing to free; a closed engine may not be used again."""
        self._closed = True

    def _complete(self, request: Request) -> Completion:
        self.prompts.append(request.prompt)
        text = self._answer(request.prompt)
        words = text.split()
        cut = len(words) > self._max_new_tokens
        return Completion(
            request_key=request.request_key,
            text=" ".join(words[: self._max_new_tokens]) if cut else text,
            finish_reason="length" if cut else "stop",
            tokens_in=len(request.prompt.split()),
            tokens_out=min(len(words), self._max_new_tokens),
        )
