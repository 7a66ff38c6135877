"""Buckets: a batch of events cut into one per bucket of users, and the files that carry those between workers.

What a runner shuffles is the place of a piece in such a file: it would copy the events themselves several times and, on
one machine, hold a whole run's in memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from warehouse.schemas import BEHAVIOURS

CRC32_POLYNOMIAL = 0xEDB88320

# Ids hashed at once: what a round needs should stay in a core's cache.
BLOCK_IDS = 1 << 16


@dataclass(frozen=True)
class Piece:
    """Where a bucket's events of one batch stand: an Arrow IPC stream of `size` bytes at `offset` of a file."""

    path: str
    offset: int
    size: int


def buckets_of(users: pa.StringArray, buckets: int) -> NDArray[np.uint16]:
    """`warehouse.keys.bucket_of` of every user: CRC-32 by table, a round per byte position of all ids in a block."""
    offset = np.frombuffer(users.buffers()[1], np.int32)[users.offset :][: len(users) + 1].astype(np.int64)
    text = np.frombuffer(users.buffers()[2] or b"", np.uint8)
    table = _crc32_table()
    found = np.empty(len(users), np.uint16)
    for block in range(0, len(users), BLOCK_IDS):
        start, stop = offset[:-1][block : block + BLOCK_IDS], offset[1:][block : block + BLOCK_IDS]
        length = stop - start
        crc = np.full(len(length), 0xFFFFFFFF, np.uint32)
        shortest = length.min()
        for position in range(length.max()):
            if position < shortest:
                crc = table[crc.astype(np.uint8) ^ text[start + position]] ^ (crc >> 8)
            else:
                rows = np.flatnonzero(length > position)
                rest = crc[rows]
                crc[rows] = table[rest.astype(np.uint8) ^ text[start[rows] + position]] ^ (rest >> 8)
        found[block : block + BLOCK_IDS] = ~crc % np.uint32(buckets)
    return found


def split(events: pa.Table, buckets: int, file: Path) -> Iterator[tuple[int, Piece]]:
    """The pieces of all buckets that have events (BEHAVIOURS), in a `file` that is complete once the iterator ends."""
    events = events.combine_chunks()
    bucket = buckets_of(events["user_id"].combine_chunks(), buckets)
    # At most 16 bits: numpy sorts those by radix.
    events = events.take(pa.array(np.argsort(bucket, kind="stable")))
    ends = np.cumsum(np.bincount(bucket, minlength=buckets)).tolist()
    with pa.OSFile(str(file), "wb") as sink:
        for number, (start, stop) in enumerate(pairwise([0, *ends])):
            if start < stop:
                offset = sink.tell()
                with pa.ipc.new_stream(sink, events.schema) as stream:
                    stream.write_table(events.slice(start, stop - start))
                yield number, Piece(str(file), offset, sink.tell() - offset)


def joined(pieces: Iterable[Piece]) -> pa.Table:
    """One bucket's events from all its pieces, as BEHAVIOURS; read from the files' pages where they lie."""
    tables = []
    for piece in pieces:
        with pa.memory_map(piece.path) as file:
            file.seek(piece.offset)
            tables.append(pa.ipc.open_stream(file.read_buffer(piece.size)).read_all().cast(BEHAVIOURS))
    return pa.concat_tables(tables)


def _crc32_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(CRC32_POLYNOMIAL), table >> 1)
    return table
