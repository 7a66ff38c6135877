"""Calls to one server: each for as many attempts as it takes, at the pace it allows, until patience ends."""

import logging
import os
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import anyio
import httpx

from augment.engine import protocol
from augment.engine.base import Completion, Request
from augment.engine.config import OpenAIConfig
from augment.engine.patience import Pace, longest_backoff_s, retry_after_s
from augment.engine.protocol import MalformedAnswer, ServerError, Verdict
from augment.engine.vllm import PROMPT_TOO_LONG
from warehouse.errors import ConfigError

# What OpenAI calls an answer that a filter cut; also ours for a prompt that one held back.
CONTENT_FILTERED = "content_filter"

# vLLM ends running requests with this when it is told to stop; the text is a beginning.
_ABORTED = "abort"

_CONNECT_TIMEOUT_S = 10.0
# Shorter than the 5 s of uvicorn, under which vLLM runs: a connection that both ends drop at once costs a retry.
_KEEP_ALIVE_S = 3.0

# A rate limit that is met all the time is worth a line now and then, not one for every call.
_WARNING_EVERY_S = 60.0

log = logging.getLogger("lorestream.engine")


class ServerRefused(ConfigError):
    """The server takes no request as it is configured."""

    def __init__(self, url: str, status: int, detail: str, remedy: str) -> None:
        self.url, self.status, self.detail, self.remedy = url, status, detail, remedy
        super().__init__(f"{url} answered {status}: {detail.rstrip('.') or 'no reason given'}. {remedy}")


class Unanswered(Exception):
    """A request that got no answer, though others may. `server_is_gone`: nobody got one while this one was tried."""

    def __init__(self, request_key: str, cause: str, server_is_gone: bool) -> None:
        self.request_key, self.cause, self.server_is_gone = request_key, cause, server_is_gone
        super().__init__(cause)


class _TryAgain(Exception):
    """An attempt that failed for the moment; `wait_s` is what the server asks to wait, if it does."""

    def __init__(self, cause: str, wait_s: float | None = None) -> None:
        self.cause, self.wait_s = cause, wait_s
        super().__init__(cause)


class Connection:
    """What the calls of one `generate` share: the client, the pace, and whether the server is there."""

    def __init__(self, config: OpenAIConfig, jitter: random.Random) -> None:
        self._config, self._jitter = config, jitter
        self._key = _api_key(config)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            # Each attempt as a whole has a limit of its own.
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=config.max_concurrent, keepalive_expiry=_KEEP_ALIVE_S),
        )
        self._slots = anyio.Semaphore(config.max_concurrent)
        self._pace = Pace(config.requests_per_minute, config.tokens_per_minute)
        self._held_until = self._last_answer = self._last_warning = float("-inf")
        self._over = False

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, tb)

    async def answer(self, request: Request, sampling: Mapping[str, object]) -> Completion:
        """The completion of a request, however many attempts it takes.

        Raises Unanswered when patience ends or the server refuses this request, ServerRefused when it refuses all.
        """
        since: float | None = None
        failures = 0
        async with self._slots:
            while True:
                if self._over:
                    # The caller has the reason already, and is about to cancel this.
                    raise Unanswered(request.request_key, "not sent any more", server_is_gone=True)
                try:
                    completion = await self._attempt(request, sampling)
                except ServerRefused:
                    self._over = True
                    raise
                except _TryAgain as failed:
                    now = anyio.current_time()
                    since, failures = now if since is None else since, failures + 1
                    wait_s = self._wait_s(failed, failures, now - since)
                    if wait_s is None:
                        gone = self._last_answer < since
                        self._over = self._over or gone
                        cause = f"{failed.cause} (attempt {failures}, {now - since:.0f} s after the first)"
                        raise Unanswered(request.request_key, cause, gone) from failed
                    await anyio.sleep(wait_s)
                else:
                    self._last_answer = anyio.current_time()
                    return completion

    def _wait_s(self, failed: "_TryAgain", failures: int, failing_s: float) -> float | None:
        """Seconds until the next attempt, None where patience ends before it."""
        config, now = self._config, anyio.current_time()
        if now - self._last_warning >= _WARNING_EVERY_S:
            self._last_warning = now
            log.warning("%s: %s; trying again", config.base_url, failed.cause)
        left, asked = config.give_up_after_s - failing_s, failed.wait_s or 0.0
        if left <= 0 or asked > left:
            return None
        # The server speaks to all callers, not to this request alone.
        self._held_until = max(self._held_until, now + asked)
        longest = longest_backoff_s(failures, config.first_retry_s, config.longest_retry_s)
        # The last attempt is made when patience ends.
        return min(asked + self._jitter.uniform(0.0, longest), left)

    async def _attempt(self, request: Request, sampling: Mapping[str, object]) -> Completion:
        config = self._config
        reserved = protocol.estimate_tokens(request.prompt) + config.max_new_tokens
        await self._turn(reserved)
        body = protocol.request_body(config.model, request.prompt, sampling, config.max_tokens_field)
        url = f"{config.base_url}{protocol.path_of(sampling)}"
        try:
            with anyio.fail_after(config.request_timeout_s):
                response = await self._client.post(url, json=body)
        except TimeoutError as error:
            raise _TryAgain(f"no answer within {config.request_timeout_s:g} s") from error
        except httpx.RequestError as error:
            raise _TryAgain(self._shown(f"{type(error).__name__}: {error}".rstrip(": "))) from error
        if response.status_code != 200:
            return self._explain(request, url, response)
        try:
            answer = protocol.read_answer(response.json())
        except MalformedAnswer as error:
            raise _TryAgain(self._shown(str(error))) from error
        except ValueError as error:
            raise _TryAgain(self._shown(f"an answer that is not JSON: {response.text}")) from error
        if answer.finish_reason == _ABORTED:
            raise _TryAgain("the server stopped in the middle of an answer")
        tokens_in, tokens_out = answer.tokens_in, answer.tokens_out
        if tokens_in is None:
            tokens_in = protocol.estimate_tokens(request.prompt)
        if tokens_out is None:
            tokens_out = protocol.estimate_tokens(answer.text)
        self._pace.give_back(reserved - tokens_in - tokens_out)
        return Completion(request.request_key, answer.text, answer.finish_reason, tokens_in, tokens_out)

    async def _turn(self, tokens: int) -> None:
        """Return once the server does not ask to wait and the pace allows a call of `tokens`."""
        while True:
            held = self._held_until - anyio.current_time()
            if held > 0:
                # All who wait for the same moment would otherwise call in it.
                await anyio.sleep(held + self._jitter.uniform(0.0, self._config.first_retry_s))
                continue
            wait = self._pace.reserve(anyio.current_time(), tokens)
            if wait > 0:
                await anyio.sleep(wait)
            # Asked to wait in the meantime: this turn is lost, which only makes the pace slower.
            if self._held_until <= anyio.current_time():
                return

    def _explain(self, request: Request, url: str, response: httpx.Response) -> Completion:
        """The empty completion of a prompt that cannot be answered; any other error is raised."""
        try:
            body: object = response.json()
        except ValueError:
            body = response.text
        error = protocol.read_error(response.status_code, body)
        error = replace(error, message=self._shown(error.message))
        match protocol.verdict_on(error):
            case Verdict.RETRY:
                wait_s = retry_after_s(response.headers.get("Retry-After"), datetime.now(UTC))
                asked = f", which asks to wait {wait_s:g} s" if wait_s else ""
                raise _TryAgain(f"HTTP {error.status}: {error.message}{asked}", wait_s)
            case Verdict.TOO_LONG:
                context = protocol.context_length(error)
                if context is not None and self._config.max_new_tokens >= context:
                    remedy = (
                        f"engine.max_new_tokens = {self._config.max_new_tokens} leaves no room for a prompt in a "
                        f"context of {context} tokens. Ask for shorter answers, or serve the model with more context."
                    )
                    raise ServerRefused(url, error.status, error.message, remedy)
                tokens = protocol.prompt_tokens(error, request.prompt)
                return Completion(request.request_key, "", PROMPT_TOO_LONG, tokens_in=tokens, tokens_out=0)
            case Verdict.FILTERED:
                return Completion(request.request_key, "", CONTENT_FILTERED, tokens_in=0, tokens_out=0)
            case Verdict.MISCONFIGURED:
                location = response.headers.get("Location")
                raise ServerRefused(url, error.status, error.message, self._remedy(error, location))
            case Verdict.REFUSED:
                raise Unanswered(request.request_key, f"HTTP {error.status}: {error.message}", server_is_gone=False)

    def _remedy(self, error: ServerError, location: str | None) -> str:
        config = self._config
        if error.status == 401:
            state = "is set, but not accepted" if self._key else "is not set"
            return (
                f"The environment variable `{config.api_key_env}` {state}. Put a valid API key into it, or name "
                "another variable in engine.api_key_env."
            )
        if error.status in (402, 429):
            return "The account has no credit left. Add some, then run again: finished texts are kept."
        if error.status == 403:
            return (
                f"The key in `{config.api_key_env}` may not use `{config.model}` there. Use another key, or another "
                "engine.model."
            )
        if error.status < 400:
            return f"It redirects to {location}. If that is the server, write its address into engine.base_url."
        return (
            f"Check engine.model = {config.model!r} and engine.base_url, which usually ends in /v1. "
            f"`curl {config.base_url}/models` lists what is served."
        )

    def _shown(self, words: str) -> str:
        """`words` of a server in one line, without the key should it echo it."""
        return protocol.shorten(words.replace(self._key, "[key]") if self._key else words)


def _api_key(config: OpenAIConfig) -> str:
    """The key in the environment, empty where there is none. Raises ConfigError for one that no header can carry."""
    key = os.environ.get(config.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        # httpx would quote the key in its own error.
        raise ConfigError(
            f"The environment variable `{config.api_key_env}` holds no API key: it has blanks or signs that no key has."
        )
    return key
