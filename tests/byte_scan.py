"""Every byte of a folder, read for planted words: files as they lie, Parquet decompressed, pools decoded to text.

It knows nothing of what the tables mean, so that it finds what the erasure forgot.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from augment.speculation.pool import RetrievalPool


def files_with(folder: Path, words: Sequence[str], tokenizer: Path) -> dict[str, list[str]]:
    """The files below `folder` in which one of `words` stands, and which ones."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = b"\n".join(_contents(path, tokenizer))
            hits = [word for word in words if word.encode() in content]
            if hits:
                found[path.relative_to(folder).as_posix()] = hits
    return found


def pool_texts(path: Path, tokenizer: Path) -> list[str]:
    """The texts of a pool, which its index holds as the token that follows each sorted context."""
    index = RetrievalPool.load(path).index
    decode: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True).decode
    first, end = int(index.starts[0]), len(index.vocabulary)
    texts = []
    for beginning in range(first):
        context, tokens = beginning, []
        while (token := int(index.followers[context])) != end:
            tokens.append(int(index.vocabulary[token]))
            low, high = int(index.starts[token]), int(index.starts[token + 1])
            context = low + int(np.searchsorted(index.places[low - first : high - first], context))
        texts.append(decode(tokens))
    return texts


def _contents(path: Path, tokenizer: Path) -> Iterator[bytes]:
    yield path.name.encode()
    yield path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        for column in table.columns:
            yield from (text.encode() for text in _texts(column))
    if path.suffix == ".pool":
        yield from (text.encode() for text in pool_texts(path, tokenizer))


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    if pa.types.is_list(column.type):
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    if pa.types.is_string(column.type):
        yield from (text for text in column.to_pylist() if text is not None)
