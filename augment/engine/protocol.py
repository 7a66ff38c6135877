"""What goes to a server that speaks OpenAI's protocol, and what its answers mean. Nothing here touches a network.

Shared by the engine that calls such a server and by the exchange of its batch files, so that both send the same body
for the same sampling and read an answer the same way.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

CHAT_PATH, COMPLETIONS_PATH = "/chat/completions", "/completions"

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]

# Keys of a body that are settings of their own, or that would change how many answers come and in which form.
RESERVED_BODY_KEYS = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "n",
        "prompt",
        "seed",
        "stream",
        "temperature",
        "top_p",
    }
)

_TOO_LONG = re.compile(r"context[ _-](?:length|window|size)|prompt (?:is )?too long", re.IGNORECASE)
# vLLM, OpenAI (two wordings) and llama.cpp's neighbours say how long the prompt was; "at least" where they stopped
# counting.
_TOKENS_FOUND = re.compile(
    r"(?:contains|resulted in|has|too long:|\()\s*(?P<least>at least )?(?P<tokens>\d+)\s+"
    r"(?:tokens|(?:input|prompt) tokens|in the messages|in your prompt)",
    re.IGNORECASE,
)
_CONTEXT_FOUND = re.compile(r"maximum context length (?:is|of) (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """The text of a successful answer; token counts are None where the server does not say them."""

    text: str
    finish_reason: str
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True)
class ServerError:
    """An answer that is none: its HTTP status, the server's code or type for the error, and its words."""

    status: int
    code: str
    message: str


class Verdict(StrEnum):
    """What an error means for the run."""

    # It may go well the next time.
    RETRY = "retry"
    # This prompt does not fit the model's context.
    TOO_LONG = "too_long"
    # A filter before the model held this prompt back.
    FILTERED = "filtered"
    # No request will go well before somebody mends the configuration.
    MISCONFIGURED = "misconfigured"
    # This request will not go well, others may.
    REFUSED = "refused"


class MalformedAnswer(ValueError):
    """A body that is no answer of the protocol, whatever its status."""


def path_of(sampling: Mapping[str, object]) -> str:
    """The end of the URL that calls with this sampling go to."""
    return CHAT_PATH if sampling["chat"] else COMPLETIONS_PATH


def request_body(
    model: str, prompt: str, sampling: Mapping[str, object], max_tokens_field: MaxTokensField = "max_tokens"
) -> dict[str, object]:
    """The JSON body that asks `model` for one answer: exactly what an engine's `sampling` says, and the prompt."""
    body: dict[str, object] = {"model": model}
    for name, value in sampling.items():
        if name == "max_new_tokens":
            body[max_tokens_field] = value
        elif name == "extra_body" and isinstance(value, Mapping):
            body |= value
        elif name != "chat":
            body[name] = value
    if sampling["chat"]:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    return body


def read_answer(body: object) -> Answer:
    """The first choice of an answer to a chat or a plain completion.

    A model's own refusal that stands apart from the content counts as its text. Raises MalformedAnswer.
    """
    choices = body.get("choices") if isinstance(body, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(body, Mapping) or not isinstance(choice, Mapping):
        raise MalformedAnswer(f"an answer without choices: {shorten(str(body))}")
    message = choice.get("message")
    if isinstance(message, Mapping):
        text = message.get("content") or message.get("refusal") or ""
    else:
        text = choice.get("text")
    if not isinstance(text, str):
        raise MalformedAnswer(f"a choice without text: {shorten(str(choice))}")
    usage = body.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    return Answer(
        text=text,
        finish_reason=str(choice.get("finish_reason") or "stop"),
        tokens_in=_count(counts.get("prompt_tokens")),
        tokens_out=_count(counts.get("completion_tokens")),
    )


def read_error(status: int, body: object) -> ServerError:
    """The error in a body of OpenAI's form, or of one of the others in use; any other body is quoted."""
    holder = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(holder, Mapping):
        return ServerError(status, "", shorten(str(holder)))
    codes = [str(holder[key]) for key in ("code", "type") if isinstance(holder.get(key), str)]
    words = next((holder[key] for key in ("message", "detail", "error") if holder.get(key)), holder)
    return ServerError(status, " ".join(codes), shorten(str(words)))


def verdict_on(error: ServerError) -> Verdict:
    """What to do about an error."""
    if "insufficient_quota" in error.code:
        # OpenAI's 429 for an account without credit, which waiting does not fill.
        return Verdict.MISCONFIGURED
    if error.status in (408, 409, 429) or error.status >= 500 or error.status < 300:
        return Verdict.RETRY
    if error.status in (400, 413, 422) and _TOO_LONG.search(f"{error.code} {error.message}"):
        return Verdict.TOO_LONG
    if error.status == 400 and "content_filter" in error.code:
        return Verdict.FILTERED
    if error.status < 400 or error.status in (401, 402, 403, 404, 405):
        return Verdict.MISCONFIGURED
    return Verdict.REFUSED


def prompt_tokens(error: ServerError, prompt: str) -> int:
    """How long a prompt is that was too long: what the server says, or an estimate where it does not (fully)."""
    found = _TOKENS_FOUND.search(error.message)
    if found is None:
        return estimate_tokens(prompt)
    counted = int(found["tokens"])
    return max(counted, estimate_tokens(prompt)) if found["least"] else counted


def context_length(error: ServerError) -> int | None:
    """The model's context in tokens as a refusal states it, None where it does not."""
    found = _CONTEXT_FOUND.search(error.message)
    return int(found[1]) if found else None


def estimate_tokens(text: str) -> int:
    """About how many tokens `text` has: one for every four bytes, OpenAI's rule of thumb for English."""
    return -(-len(text.encode()) // 4)


def shorten(words: str, limit: int = 400) -> str:
    """`words` in one line of at most `limit` characters."""
    line = " ".join(words.split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
