"""OpenAI's batch files: planned calls as JSON Lines, and the answers in them.

Hosted models answer such files at a discount, `vllm run-batch` on a machine of one's own. The key of a request is its
`custom_id`, so the answers find their way back without a file of our own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa

from augment.engine import protocol
from augment.interchange.faults import FaultReason, ImportFault
from warehouse.errors import InputError
from warehouse.store import replacing

# Of one input file (platform.openai.com/docs/guides/batch, "Rate limits": 50,000 requests and 200 MB a batch).
MAX_REQUESTS_PER_FILE = 50_000
MAX_BYTES_PER_FILE = 200_000_000

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class BatchText:
    """The answer to one call of a batch; `request_key` is the line's custom_id."""

    row: int
    request_key: str
    text: str
    finish_reason: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class BatchExport:
    """What was written: how many requests, into which files."""

    requests: int
    files: tuple[Path, ...]


def export_batch(
    pending: pa.Table,
    model: str,
    sampling: Mapping[str, object],
    out: Path,
    *,
    max_tokens_field: protocol.MaxTokensField = "max_tokens",
    max_requests_per_file: int = MAX_REQUESTS_PER_FILE,
    max_bytes_per_file: int = MAX_BYTES_PER_FILE,
) -> BatchExport:
    """Write `pending` calls (columns request_key, prompt) of an engine with this model and sampling as batch files.

    All go into `out` if they fit, else into `<stem>-1-of-3.jsonl` and so on beside it. Each file appears whole or not
    at all. No call, no file.
    """
    sizes = [len(line) for line in _lines(pending, model, sampling, max_tokens_field)]
    parts = _split(sizes, max_requests_per_file, max_bytes_per_file)
    lines = _lines(pending, model, sampling, max_tokens_field)
    files = []
    for number, length in enumerate(parts, start=1):
        path = out if len(parts) == 1 else out.with_name(f"{out.stem}-{number}-of-{len(parts)}{out.suffix}")
        with replacing(path) as temporary, temporary.open("wb") as stream:
            for _ in range(length):
                stream.write(next(lines))
        files.append(path)
    return BatchExport(len(sizes), tuple(files))


def read_batch_results(path: Path) -> Iterator[BatchText | ImportFault]:
    """The answers in a batch's output or error file, in its order, and a fault for every line that holds none.

    An empty answer is an answer: it was paid for. Of several lines for one call the first with an answer stays. Raises
    InputError for a file that cannot be read.
    """
    seen: set[str] = set()
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                result = _read_line(number, line)
                if isinstance(result, BatchText):
                    if result.request_key in seen:
                        result = ImportFault(number, FaultReason.DUPLICATE_ID, result.request_key)
                    else:
                        seen.add(result.request_key)
                yield result
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error


def _lines(
    pending: pa.Table, model: str, sampling: Mapping[str, object], max_tokens_field: protocol.MaxTokensField
) -> Iterator[bytes]:
    url = f"/v1{protocol.path_of(sampling)}"
    for batch in pending.select(["request_key", "prompt"]).to_batches(max_chunksize=_BATCH_ROWS):
        for key, prompt in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            body = protocol.request_body(model, prompt, sampling, max_tokens_field)
            line = {"custom_id": key, "method": "POST", "url": url, "body": body}
            yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _split(sizes: list[int], max_requests: int, max_bytes: int) -> list[int]:
    """How many lines of these sizes go into each file; a line larger than a file has one to itself."""
    parts: list[int] = []
    room = 0
    for size in sizes:
        if not parts or parts[-1] >= max_requests or size > room:
            parts.append(0)
            room = max_bytes
        parts[-1] += 1
        room -= size
    return parts


def _read_line(number: int, line: bytes) -> BatchText | ImportFault:
    try:
        result = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return ImportFault(number, FaultReason.MALFORMED_LINE, f"not JSON: {error}")
    if not isinstance(result, dict):
        return ImportFault(number, FaultReason.MALFORMED_LINE, f"no JSON object: {protocol.shorten(str(result))}")
    key, response = result.get("custom_id"), result.get("response")
    if not isinstance(key, str) or not key:
        return ImportFault(number, FaultReason.MISSING_ID, f"custom_id is {key!r}")
    if not isinstance(response, dict):
        failed = protocol.read_error(0, {"error": result.get("error") or "no response"})
        return ImportFault(number, FaultReason.FAILED_CALL, f"{key}: {failed.code or 'error'}: {failed.message}")
    status, body = response.get("status_code"), response.get("body")
    if status != 200 or result.get("error"):
        failed = protocol.read_error(0, result.get("error") or body)
        return ImportFault(number, FaultReason.FAILED_CALL, f"{key}: HTTP {status}: {failed.message}")
    try:
        answer = protocol.read_answer(body)
    except protocol.MalformedAnswer as malformed:
        return ImportFault(number, FaultReason.MALFORMED_LINE, f"{key}: {malformed}")
    # What a batch does not count is not guessed: the prompt is not in its answers.
    return BatchText(number, key, answer.text, answer.finish_reason, answer.tokens_in or 0, answer.tokens_out or 0)
