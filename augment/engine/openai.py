"""Text from a server that speaks OpenAI's protocol: vLLM, another inference server, or a hosted model.

httpx moves the bytes; the policy is ours: how many calls at once, how fast, when to try again and when to stop. Calls
run in an event loop of their own thread, so the server stays busy while the caller stores what it got.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue

from anyio.from_thread import start_blocking_portal

from augment.engine.base import Completion, Request, sampling_of_attempt
from augment.engine.config import OpenAIConfig
from augment.engine.errors import EngineFailed
from augment.engine.server import CONTENT_FILTERED, Connection, ServerRefused, Unanswered
from augment.engine.vllm import PROMPT_TOO_LONG, EngineStats

__all__ = ["CONTENT_FILTERED", "OpenAIConfig", "OpenAIEngine", "ServerRefused"]

# Requests held for each one that may run, so that a freed slot is not empty while the caller is busy.
_HELD_FACTOR = 2

# Refusals in a row, with no answer between them, after which it is no longer the prompts' fault.
_REFUSALS_IN_A_ROW = 16


class OpenAIEngine:
    """A model behind an OpenAI-compatible server. Building it contacts nobody.

    `jitter` draws the random part of the waits between attempts.
    """

    def __init__(
        self,
        config: OpenAIConfig,
        on_progress: Callable[[EngineStats], None] | None = None,
        *,
        jitter: random.Random | None = None,
    ) -> None:
        self.config = config
        self._on_progress = on_progress
        self._jitter = jitter or random.Random()
        self._closed = False
        self._generating = False
        self.stats = EngineStats()

    @property
    def model(self) -> str:
        return self.config.model

    @property
    def revision(self) -> str:
        """What the configuration calls the served weights; `served` where it does not."""
        return self.config.revision or "served"

    @property
    def sampling(self) -> Mapping[str, object]:
        """What besides prompt and model a request's body holds; enters every request key."""
        return self._sampling(0)

    @property
    def verification(self) -> str:
        return "strict"

    @property
    def generating_seconds(self) -> float:
        """Seconds from the first request to the last completion of every call of `generate`."""
        return self.stats.generating_s

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions as they finish, in any order, one per request; pulls requests as slots become free.

        What fails for the moment (no connection, a timeout, HTTP 408, 409, 429, 5xx, an answer cut off) is tried again.
        A prompt that the server finds too long gets finish reason `prompt_too_long`, one that a filter holds back
        `content_filter`, and an empty text.

        Raises ServerRefused where no request can go well as configured, and EngineFailed where the server was gone or
        busy for `give_up_after_s`. Where only some requests got no answer, EngineFailed comes last, after all others
        are answered. Whatever was finished is yielded before an error. An iterator that is closed early gives up what
        is running.
        """
        assert not self._closed, "a closed engine may not be used again"
        assert not self._generating, "one generation at a time: finish or close the iterator first"
        self._generating = True
        try:
            yield from self._stream(iter(requests))
        finally:
            self._generating = False

    def close(self) -> None:
        """Nothing is left to free; a closed engine may not be used again."""
        self._closed = True

    def _sampling(self, attempt: int) -> dict[str, object]:
        config = self.config
        temperature, seed = sampling_of_attempt(config.temperature, config.seed, attempt)
        sampling: dict[str, object] = {
            "chat": config.chat,
            "max_new_tokens": config.max_new_tokens,
            "temperature": temperature,
        }
        if temperature > 0:
            sampling |= {"seed": seed, "top_p": config.top_p}
        if config.extra_body:
            sampling["extra_body"] = dict(config.extra_body)
        return sampling

    def _stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        first = next(requests, None)
        if first is None:
            return
        started, before = time.perf_counter(), self.stats.generating_s
        outcomes: SimpleQueue[Completion | Exception] = SimpleQueue()
        lost: list[Unanswered] = []
        refused_in_a_row = 0
        session = Connection(self.config, self._jitter)
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(session) as connection:

            async def deliver(request: Request) -> None:
                try:
                    outcomes.put(await connection.answer(request, self._sampling(request.attempt)))
                except Exception as error:
                    outcomes.put(error)

            running: list[Future[None]] = [portal.start_task_soon(deliver, first)]
            held, exhausted, failure = 1, False, None
            try:
                while held:
                    while not exhausted and held < _HELD_FACTOR * self.config.max_concurrent:
                        request = next(requests, None)
                        if request is None:
                            exhausted = True
                            break
                        running.append(portal.start_task_soon(deliver, request))
                        held += 1
                    outcome = outcomes.get()
                    held -= 1
                    running = [future for future in running if not future.done()]
                    if isinstance(outcome, Completion):
                        refused_in_a_row = 0
                        self._count(outcome, before + time.perf_counter() - started)
                        yield outcome
                        continue
                    if isinstance(outcome, Unanswered):
                        lost.append(outcome)
                        refused_in_a_row += 1
                        if not outcome.server_is_gone and refused_in_a_row < _REFUSALS_IN_A_ROW:
                            continue
                    failure = outcome
                    break
            finally:
                for future in running:
                    future.cancel()
            # What was answered while the failure was on its way is paid for.
            while not outcomes.empty():
                outcome = outcomes.get()
                if isinstance(outcome, Completion):
                    self._count(outcome, before + time.perf_counter() - started)
                    yield outcome
        if failure is not None and not isinstance(failure, Unanswered):
            raise failure
        if lost:
            raise self._failure(lost)

    def _count(self, completion: Completion, generating_s: float) -> None:
        done = self.stats
        self.stats = replace(
            done,
            finished=done.finished + 1,
            too_long=done.too_long + (completion.finish_reason == PROMPT_TOO_LONG),
            tokens_in=done.tokens_in + completion.tokens_in,
            tokens_out=done.tokens_out + completion.tokens_out,
            generating_s=generating_s,
        )
        if self._on_progress:
            self._on_progress(self.stats)

    def _failure(self, lost: "list[Unanswered]") -> EngineFailed:
        first, last = lost[0], lost[-1]
        if last.server_is_gone:
            cause = f"{self.config.base_url} gave no answer: {last.cause}"
            remedy = "Finished texts are kept; see that the server runs, then run again for the rest."
        else:
            cause = f"{len(lost)} requests got no answer; the first of them ({first.request_key}): {first.cause}"
            remedy = (
                "Finished texts are kept; run again for the rest. If the server refuses them again, change what it "
                "objects to in the prompts or in engine.extra_body."
            )
        return EngineFailed(self.model, "generate", cause, remedy)
