"""Buckets: the vectorised hash equals the one in `warehouse.keys`, and what is split comes back whole."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment import buckets
from augment.buckets import Piece, buckets_of, joined, split
from tests.augment.partition_oracle import Row, behaviours
from warehouse.keys import bucket_of
from warehouse.schemas import BEHAVIOURS

untimed = settings(deadline=None)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
rows = st.tuples(texts, texts, st.integers(-(10**16), 10**17), st.floats(width=32, allow_nan=False), texts)


@untimed
@given(st.lists(texts, max_size=30), st.integers(0, 5), st.integers(1, 65_536))
def test_buckets_equal_those_of_the_warehouse(users: list[str], skipped: int, count: int) -> None:
    array = pa.array(["first", "second", *users], pa.string()).slice(skipped)
    assert buckets_of(array, count).tolist() == [bucket_of(user, count) for user in array.to_pylist()]


def test_ids_of_several_blocks_keep_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "BLOCK_IDS", 7)
    users = [str(10**n) for n in range(19)] + ["", "用户"]
    assert buckets_of(pa.array(users), 64).tolist() == [bucket_of(user, 64) for user in users]


@untimed
@given(st.lists(st.lists(rows, min_size=1, max_size=20), min_size=1, max_size=3), st.integers(1, 4))
def test_what_is_split_comes_back_whole_and_in_its_bucket(batches: list[list[Row]], count: int) -> None:
    pieces: dict[int, list[Piece]] = {}
    with TemporaryDirectory() as folder:
        for n, batch in enumerate(batches):
            for number, piece in split(behaviours(batch), count, Path(folder, f"{n}.arrow")):
                pieces.setdefault(number, []).append(piece)
        back = {number: joined(parts) for number, parts in pieces.items()}
    # The folder is gone: what was joined must hold its events all the same.
    assert all(table.schema.equals(BEHAVIOURS) for table in back.values())
    assert all(bucket_of(user, count) == number for number, t in back.items() for user in t["user_id"].to_pylist())
    # -0.0 == 0.0, so rows are told apart by what they print.
    found = Counter(str(row) for table in back.values() for row in table.to_pylist())
    assert found == Counter(str(row) for batch in batches for row in behaviours(batch).to_pylist())
