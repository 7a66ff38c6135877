import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import lorestream
from warehouse.errors import CorruptWarehouse, UsageError, WarehouseNotFound
from warehouse.frame import Frame, as_arrow
from warehouse.ledger import Ledger
from warehouse.manifest import publish
from warehouse.reader import Warehouse

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def warehouse(tmp_path: Path, feature_rows: Build, at: Clock) -> Warehouse:
    users = [{"user_id": user, "valid_from": at(10), "augment": [1.0, 2.0]} for user in "ab"]
    items = [{"item_id": "i", "valid_from": at(10), "augment": None}]
    rows = {name: feature_rows(name, made) for name, made in (("user_features", users), ("item_features", items))}
    publish(tmp_path, rows, replace=False, now=at(0), lineage={})
    return lorestream.open(tmp_path)


@pytest.fixture
def impressions(at: Clock) -> pa.Table:
    return pa.table(
        {
            "user_id": ["b", "x", "a", "a"],
            "item_id": ["i"] * 4,
            "ts": pa.array([at(11), at(11), at(5), at(12)], pa.timestamp("us", "UTC")),
            "label": [1, 0, 0, 1],
        }
    )


def test_every_kind_of_frame_joins_alike(warehouse: Warehouse, impressions: pa.Table) -> None:
    expected = warehouse.join(impressions).to_arrow().to_pylist()
    assert [row["has_user_augment"] for row in expected] == [True, False, False, True]
    assert [row["item_rung"] for row in expected] == ["none", "none", None, "none"]
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.register("shown", impressions)
        for rows in (impressions.to_pandas(), pl.from_arrow(impressions), con.sql("SELECT * FROM shown")):
            assert warehouse.join(rows).to_arrow().to_pylist() == expected
    (batch,) = impressions.to_batches()
    assert warehouse.join(batch).to_arrow().to_pylist() == expected


def test_a_pandas_index_comes_back(warehouse: Warehouse, impressions: pa.Table) -> None:
    shuffled = impressions.to_pandas().set_index(pd.Index([9, 3, 5, 1]))
    joined = warehouse.join(shuffled).to_pandas()
    assert joined.index.tolist() == [9, 3, 5, 1]
    assert joined.loc[1, "user_augment"].tolist() == [1.0, 2.0]
    pd.testing.assert_frame_equal(joined[shuffled.columns], shuffled)


def test_a_joined_frame_becomes_polars_torch_or_any_arrow_reader(warehouse: Warehouse, impressions: pa.Table) -> None:
    joined = warehouse.join(impressions)
    assert joined.to_polars()["user_augment"].to_list() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]
    assert pa.table(joined).equals(joined.to_arrow())
    tensors = joined.to_torch()
    assert torch.equal(tensors["user_augment"], torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]))
    assert torch.equal(tensors["has_user_augment"], torch.tensor([True, False, False, True]))
    assert torch.equal(tensors["label"], torch.tensor([1, 0, 0, 1]))
    assert tensors["ts"][0].item() == 1577836811000000
    assert tensors["item_augment"].shape == (4, 2)
    assert "user_id" not in tensors
    assert "user_valid_from" not in tensors


def test_tensors_do_not_depend_on_the_pieces_of_a_table_and_may_be_written_to() -> None:
    whole = pa.table({"n": [1, 2, 3], "on": [True, False, True], "v": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]})
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert pieces["v"].num_chunks == 2
    tensors = Frame(pieces).to_torch()
    for name, tensor in Frame(whole).to_torch().items():
        assert torch.equal(tensors[name], tensor)
    tensors["v"][0, 0] = 9.0
    assert pieces["v"][0].as_py() == [1.0, 2.0]


def test_a_column_that_is_no_tensor_is_refused_with_the_reason(warehouse: Warehouse, impressions: pa.Table) -> None:
    joined = warehouse.join(impressions, fill="null")
    for column, reason in [
        ("user_augment", "2 nulls.*fill='zeros'"),
        ("user_id", "it is string"),
        ("nope", "no column `nope`"),
    ]:
        with pytest.raises(UsageError, match=reason):
            joined.to_torch([column])


def test_no_impressions_give_no_rows_but_all_columns(warehouse: Warehouse, impressions: pa.Table) -> None:
    full, empty = warehouse.join(impressions), warehouse.join(impressions.slice(0, 0))
    assert empty.to_arrow().schema.equals(full.to_arrow().schema)
    assert len(empty) == 0
    assert empty.to_torch()["user_augment"].shape[0] == 0


def test_a_table_that_has_no_rows_yet_joins_as_unknown(tmp_path: Path, impressions: pa.Table, at: Clock) -> None:
    publish(tmp_path, {}, replace=False, now=at(0), lineage={})
    joined = lorestream.open(tmp_path).join(impressions).to_arrow()
    assert joined["has_user_augment"].to_pylist() == [False] * 4
    assert joined["user_augment"].to_pylist() == [[]] * 4


def test_a_pinned_snapshot_does_not_move(tmp_path: Path, warehouse: Warehouse, feature_rows: Build, at: Clock) -> None:
    more = feature_rows("user_features", [{"user_id": "c", "valid_from": at(1)}])
    newer = publish(tmp_path, {"user_features": more}, replace=False, now=at(1), lineage={})
    assert warehouse.table("user_features", ["user_id"]).to_arrow()["user_id"].to_pylist() == ["a", "b"]
    again = lorestream.open(tmp_path)
    assert again.current_snapshot == newer.snapshot_id
    assert [snapshot.snapshot_id for snapshot in again.snapshots()] == [warehouse.current_snapshot, newer.snapshot_id]
    shown = pa.table({"user_id": ["c"], "ts": [at(2)]})
    for reader, snapshot, known in [
        (again, None, True),
        (again, warehouse.current_snapshot, False),
        (lorestream.open(tmp_path, snapshot=warehouse.current_snapshot), None, False),
    ]:
        joined = reader.join(shown, item=None, snapshot=snapshot)
        assert joined.to_arrow()["has_user_augment"].to_pylist() == [known]


def test_mistakes_in_a_call_are_named(warehouse: Warehouse, impressions: pa.Table) -> None:
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: warehouse.join(impressions, clock="wall"), "clock='wall'.* event, known"),  # type: ignore[arg-type]
        (lambda: warehouse.join(impressions, fill="mean"), "fill='mean'.* zeros, null"),  # type: ignore[arg-type]
        (lambda: warehouse.join(impressions, user=None, item=None), "leave out both sides"),
        (lambda: warehouse.join([{"user_id": "a"}]), "The impressions are a builtins.list; give a pyarrow table"),
        (lambda: warehouse.join(pl.LazyFrame()), "collect a LazyFrame first"),
        (lambda: warehouse.join(impressions, snapshot="nope"), "no snapshot `nope`"),
        (lambda: warehouse.table("knowledge"), "no public table `knowledge`; .* user_features, item_features"),
        (
            lambda: warehouse.table("item_features", ["vector"]),
            "`item_features` has no column `vector`; it has item_id",
        ),
    ]
    for call, message in calls:
        with pytest.raises(UsageError, match=message):
            call()


def test_a_folder_without_tables_is_refused_with_what_to_do(tmp_path: Path, at: Clock) -> None:
    with pytest.raises(WarehouseNotFound, match="lorestream init"):
        lorestream.open(tmp_path / "nowhere")
    with pytest.raises(WarehouseNotFound, match="lorestream init"):
        lorestream.open(tmp_path)
    (tmp_path / "ledger").mkdir()
    with pytest.raises(UsageError, match="has published nothing yet"):
        lorestream.open(tmp_path)
    Ledger(tmp_path).commit("ingest", {}, now=at(0))
    with pytest.raises(CorruptWarehouse, match=r"manifest\.json is missing, although the ledger shows"):
        lorestream.open(tmp_path)


def test_a_file_cut_short_is_named_before_anything_is_read(warehouse: Warehouse, impressions: pa.Table) -> None:
    path = next((warehouse.root / "features" / "user_features").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptWarehouse, match=rf"{path.name} has 100 bytes instead of \d+.*rollback"):
        warehouse.join(impressions)


def test_mixed_types_in_pandas_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(UsageError, match="mixed types"):
        as_arrow(pd.DataFrame({"user_id": ["a", 1]}))


READER = """
import sys

ABSENT = "torch vllm transformers pandas polars numpy pydantic prefect apache_beam sklearn".split()

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from datetime import datetime
import pyarrow as pa
import lorestream
from warehouse.errors import LorestreamError
w = lorestream.open(sys.argv[1])
shown = pa.table({"user_id": ["a"], "item_id": ["i"], "ts": [datetime(2021, 1, 1)]})
print(w.join(shown).to_arrow()["user_augment"].to_pylist(), w.table("user_features").to_arrow().num_rows)
for convert in (w.join(shown).to_pandas, w.join(shown).to_polars, w.join(shown).to_torch):
    try:
        convert()
    except LorestreamError as error:
        print(error)
for to in ("easyrec", "recbole", "feast"):
    w.export(to, sys.argv[2])
try:
    w.export("npy", sys.argv[2])
except LorestreamError as error:
    print(error)
"""


def test_reading_needs_pyarrow_and_duckdb_only_and_the_rest_says_what_to_install(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    exported = tmp_path.with_name(f"{tmp_path.name}-exported")
    command = [sys.executable, "-c", READER, str(warehouse.root), str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.splitlines() == [
        "[[1.0, 2.0]] 2",
        "Frame.to_pandas() takes pandas, which is not installed: `pip install pandas`.",
        "Frame.to_polars() takes polars, which is not installed: `pip install polars`.",
        "Frame.to_torch() takes torch, which is not installed: `pip install torch`.",
        "An export as a matrix takes numpy, which is not installed: `pip install numpy`.",
    ], done.stderr
