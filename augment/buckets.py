"""Buckets: a batch of events cut into one per bucket of users, and the bytes that carry those between workers.

A runner on one machine copies these bytes several times and holds a whole run's in memory: their size counts.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from warehouse.schemas import BEHAVIOURS

CRC32_POLYNOMIAL = 0xEDB88320

# Ids hashed at once: what a round needs should stay in a core's cache.
BLOCK_IDS = 1 << 16

# Texts that are shorter than this on average travel as they are: a dictionary per bucket and batch saves less than it
# costs, as most of an item's events are in other buckets.
SHORT_TEXT_BYTES = 16


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


def split(events: pa.Table, buckets: int) -> Iterator[tuple[int, bytes]]:
    """The events (BEHAVIOURS) of each bucket that has any, as an Arrow IPC stream that `joined` reads."""
    events = events.combine_chunks()
    bucket = buckets_of(events["user_id"].combine_chunks(), buckets)
    # At most 16 bits: numpy sorts those by radix.
    events = events.take(pa.array(np.argsort(bucket, kind="stable")))
    ends = np.cumsum(np.bincount(bucket, minlength=buckets)).tolist()
    for number, (start, stop) in enumerate(pairwise([0, *ends])):
        if start < stop:
            yield number, _packed(events.slice(start, stop - start))


def joined(streams: Iterable[bytes]) -> pa.Table:
    """One bucket's events from all its streams, as BEHAVIOURS."""
    return pa.concat_tables(_unpacked(stream) for stream in streams)


def _packed(events: pa.Table) -> bytes:
    table = pa.table([_coded(column.combine_chunks()) for column in events.columns], names=events.column_names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _unpacked(stream: bytes) -> pa.Table:
    return pa.ipc.open_stream(stream).read_all().cast(BEHAVIOURS)


def _coded(column: pa.Array) -> pa.Array:
    """Texts as codes of a dictionary, the codes as small as can be, where that pays; other columns as they are."""
    if pa.types.is_string(column.type):
        offset = np.frombuffer(column.buffers()[1], np.int32)[column.offset :][: len(column) + 1]
        if offset[-1] - offset[0] >= SHORT_TEXT_BYTES * len(column):
            column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        for codes in (pa.int8(), pa.int16()):
            if len(column.dictionary) <= np.iinfo(codes.to_pandas_dtype()).max:
                return pa.DictionaryArray.from_arrays(column.indices.cast(codes), column.dictionary)
    return column


def _crc32_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(CRC32_POLYNOMIAL), table >> 1)
    return table
