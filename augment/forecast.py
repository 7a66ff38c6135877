"""What a plan would cost: calls and tokens per kind, counted where they can be counted and estimated where not."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from warehouse.schemas import KNOWLEDGE, REQUESTS
from warehouse.sql import connect, parquet_view

# Enough for a mean within a few percent; tokenizing millions of prompts would take longer than a look should.
_SAMPLE = 500
# Of English text; what OpenAI's own rule of thumb says as well.
_CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class KindForecast:
    """Planned calls of one kind. `tokens_in` is extrapolated from a sample of prompts when there are many.

    `tokens_out` is calls x the mean of earlier answers of this kind and engine, or x the limit when there are none
    (`tokens_out_is_limit`).
    """

    calls: int
    tokens_in: int
    tokens_out: int
    tokens_out_is_limit: bool


def forecast_calls(
    pending: pa.Table,
    requests: Sequence[Path],
    knowledge: Sequence[Path],
    engine_id: str,
    tokenizer: Path | None,
    max_new_tokens: int,
) -> dict[str, KindForecast]:
    """The cost of `pending` (see `augment.pending`) by kind; chat-template tokens are not counted.

    `tokenizer` is the folder of one; without, a token is taken for four characters.
    """
    if not pending.num_rows:
        return {}
    count = _counter(tokenizer)
    means = _mean_answers(requests, knowledge, engine_id)
    kinds = np.asarray(pending.column("kind").to_pylist(), dtype=object)
    result = {}
    for kind in sorted(set(kinds)):
        rows = np.flatnonzero(kinds == kind)
        sample = rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int)]
        prompts = pending.column("prompt").take(pa.array(sample)).to_pylist()
        lengths = count(prompts)
        mean_out = means.get(kind, float(max_new_tokens))
        result[kind] = KindForecast(
            calls=len(rows),
            tokens_in=round(float(np.mean(lengths)) * len(rows)),
            tokens_out=round(mean_out * len(rows)),
            tokens_out_is_limit=kind not in means,
        )
    return result


def expected_tokens(
    requests: Sequence[Path], knowledge: Sequence[Path], engine_id: str, max_new_tokens: int, kinds: Collection[str]
) -> dict[str, float]:
    """Output tokens of an answer by kind: the mean of earlier ones, or the limit where there are none."""
    means = _mean_answers(requests, knowledge, engine_id)
    return {kind: means.get(kind, float(max_new_tokens)) for kind in kinds}


def _counter(tokenizer: Path | None) -> Callable[[list[str]], list[int]]:
    """Numbers of tokens of texts."""
    if tokenizer is None:
        return lambda texts: [-(-len(text) // _CHARS_PER_TOKEN) for text in texts]
    # Loading transformers takes seconds, which runs need not spend: this is for dry ones.
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return lambda texts: [len(ids) for ids in loaded(texts)["input_ids"]]


def _mean_answers(requests: Sequence[Path], knowledge: Sequence[Path], engine_id: str) -> dict[str, float]:
    with connect() as con:
        parquet_view(con, "requests", requests, REQUESTS)
        parquet_view(con, "knowledge", knowledge, KNOWLEDGE, grown=True)
        rows = con.execute(
            "SELECT kind, avg(tokens_out) FROM knowledge JOIN requests USING (request_key) "
            "WHERE engine_id = ? GROUP BY kind",
            [engine_id],
        ).fetchall()
    return {kind: float(mean) for kind, mean in rows}
