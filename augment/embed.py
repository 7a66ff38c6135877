"""Embedding of stored texts: every usable text without a vector of this encoder gets one, in immutable segments."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from augment.encode import TextEncoder
from warehouse.answers import IMPORTED, answers_view
from warehouse.schemas import REQUESTS, embeddings_schema
from warehouse.sql import connect, parquet_view, quote
from warehouse.store import write_table

# Large enough that sorting by length inside a segment saves padding, small enough to show progress and lose little in a
# crash: two minutes on two cores.
SEGMENT_ROWS = 1024

Progress = Callable[[int, int, float], None]
"""Called with texts done, texts in all and texts per second."""


@dataclass(frozen=True)
class EmbedReport:
    """How many texts were encoded; `texts_per_s` leaves out the loading of the encoder."""

    texts: int = 0
    seconds: float = 0.0
    texts_per_s: float = 0.0
    segments: int = 0


def embed_pending(
    requests: Sequence[Path],
    knowledge: Sequence[Path],
    embeddings: Sequence[Path],
    engine_id: str,
    encoder: TextEncoder,
    folder: Path,
    run: str,
    *,
    stored: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> EmbedReport:
    """Vectors for the `ok` texts of `engine_id`, and imported ones, that have none of this encoder; under `folder`.

    `stored` is called after every segment. The encoder is loaded only when there is something to do.
    """
    with connect() as con:
        parquet_view(con, "requests", requests, REQUESTS)
        answers_view(con, knowledge)
        parquet_view(
            con, "embeddings", embeddings, pa.schema([("request_key", pa.string()), ("encoder_id", pa.string())])
        )
        pending: pa.Table = con.sql(
            f"""
            SELECT request_key, text
            FROM answers SEMI JOIN (
                FROM requests WHERE engine_id = $engine OR starts_with(engine_id, {quote(IMPORTED)})
            ) USING (request_key)
            ANTI JOIN (SELECT request_key FROM embeddings WHERE encoder_id = $encoder) USING (request_key)
            WHERE status = 'ok'
            ORDER BY request_key
            """,
            params={"engine": engine_id, "encoder": encoder.encoder_id},
        ).to_arrow_table()
    if not pending.num_rows:
        return EmbedReport()
    encoder.load()
    started = time.monotonic()
    segments = 0
    for start in range(0, pending.num_rows, SEGMENT_ROWS):
        piece = pending.slice(start, SEGMENT_ROWS)
        vectors = encoder.encode(piece.column("text").to_pylist())
        rows = _rows(piece, vectors, encoder)
        write_table(folder / f"{run}-{segments:05d}.parquet", rows)
        segments += 1
        stored()
        if progress:
            done = start + piece.num_rows
            progress(done, pending.num_rows, done / max(time.monotonic() - started, 1e-3))
    seconds = time.monotonic() - started
    return EmbedReport(pending.num_rows, round(seconds, 2), round(pending.num_rows / max(seconds, 1e-3), 1), segments)


def _rows(piece: pa.Table, vectors: np.ndarray, encoder: TextEncoder) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    n = piece.num_rows
    return pa.Table.from_arrays(
        [
            piece.column("request_key"),
            pa.array([encoder.encoder_id] * n),
            pa.FixedSizeListArray.from_arrays(flat, encoder.dim),
            # Windows cover the whole text, so nothing is cut; the column records that it was checked.
            pa.array(np.zeros(n, np.int32)),
        ],
        schema=embeddings_schema(encoder.dim),
    )
