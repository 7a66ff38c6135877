import json
import math
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from warehouse import manifest, store
from warehouse.errors import CorruptWarehouse, UsageError
from warehouse.manifest import UnfitFeatures, publish, rollback, snapshots
from warehouse.reader import open as open_warehouse
from warehouse.schemas import FEATURES
from warehouse.snapshot import read_manifest

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]
CASES = Path(__file__).parent / "cases"


@pytest.fixture
def users(feature_rows: Build, at: Clock) -> Build:
    """`users("a", "b")`: one row per user."""
    return lambda *ids, **row: feature_rows("user_features", [{"user_id": i, "valid_from": at(1), **row} for i in ids])


@pytest.fixture
def items(feature_rows: Build, at: Clock) -> Build:
    return lambda *ids, **row: feature_rows("item_features", [{"item_id": i, "valid_from": at(1), **row} for i in ids])


def ids(root: Path, table: str, snapshot: str | None = None) -> list[str]:
    entity = FEATURES[table].names[0]
    return open_warehouse(root).table(table, [entity], snapshot).to_arrow()[entity].to_pylist()


def test_published_rows_read_back_with_their_snapshot_id(tmp_path: Path, users: Build, at: Clock) -> None:
    made = publish(tmp_path, {"user_features": users("b", "a")}, replace=False, now=at(9), lineage={"run": 7})
    table = open_warehouse(tmp_path).table("user_features").to_arrow()
    assert table.schema.equals(FEATURES["user_features"])
    assert table["user_id"].to_pylist() == ["a", "b"]
    assert set(table["snapshot_id"].to_pylist()) == {made.snapshot_id}
    assert read_manifest(tmp_path).current_snapshot() == made
    assert (made.parent, made.created_at, made.lineage) == (None, at(9), {"run": 7})
    assert made.stats["user_features"] == {
        **{"rows": 2, "rows_added": 2, "augment_dim": 2},
        **{"own": 2, "group": 0, "global": 0, "none": 0},
    }


def test_a_further_publication_shares_files_and_adds_rows(
    tmp_path: Path, users: Build, items: Build, at: Clock
) -> None:
    first = publish(
        tmp_path, {"user_features": users("a"), "item_features": items("i")}, replace=False, now=at(1), lineage={}
    )
    before = (tmp_path / first.tables["user_features"][0].path).read_bytes()
    second = publish(tmp_path, {"user_features": users("b")}, replace=False, now=at(2), lineage={})
    assert second.tables["user_features"][:1] == first.tables["user_features"]
    assert second.tables["item_features"] == first.tables["item_features"]
    assert (tmp_path / first.tables["user_features"][0].path).read_bytes() == before
    assert second.parent == first.snapshot_id < second.snapshot_id
    assert ids(tmp_path, "user_features") == ["a", "b"]
    assert ids(tmp_path, "user_features", first.snapshot_id) == ["a"]
    rows = open_warehouse(tmp_path).table("user_features").to_arrow()
    assert rows["snapshot_id"].to_pylist() == [first.snapshot_id, second.snapshot_id]


def test_replacing_renews_the_named_tables_only(tmp_path: Path, users: Build, items: Build, at: Clock) -> None:
    publish(tmp_path, {"user_features": users("a"), "item_features": items("i")}, replace=False, now=at(1), lineage={})
    made = publish(tmp_path, {"user_features": users("b")}, replace=True, now=at(2), lineage={})
    assert ids(tmp_path, "user_features") == ["b"]
    assert ids(tmp_path, "item_features") == ["i"]
    counts = made.stats["item_features"]
    assert (counts["rows"], counts["rows_added"], counts["augment_dim"], counts["own"]) == (1, 0, 2, 1)
    publish(tmp_path, {"item_features": items()}, replace=True, now=at(3), lineage={})
    assert ids(tmp_path, "item_features") == []


def test_with_nothing_to_add_the_current_snapshot_stays(tmp_path: Path, users: Build, at: Clock) -> None:
    first = publish(tmp_path, {"user_features": users("a")}, replace=False, now=at(1), lineage={})
    before = (tmp_path / "features" / "manifest.json").read_bytes()
    assert publish(tmp_path, {}, replace=False, now=at(2), lineage={"run": 2}) == first
    assert publish(tmp_path, {"user_features": users()}, replace=False, now=at(2), lineage={}) == first
    assert (tmp_path / "features" / "manifest.json").read_bytes() == before


def test_the_first_publication_may_be_empty(tmp_path: Path, at: Clock) -> None:
    made = publish(tmp_path, {}, replace=False, now=at(1), lineage={})
    assert read_manifest(tmp_path).current == made.snapshot_id
    assert ids(tmp_path, "user_features") == []


def test_an_id_names_number_parent_time_and_lineage(users: Build, at: Clock, tmp_path: Path) -> None:
    made = [
        publish(tmp_path / str(place), {"user_features": users("a")}, replace=False, now=now, lineage=lineage)
        for place, (now, lineage) in enumerate([(at(1), {}), (at(1), {}), (at(2), {}), (at(1), {"run": 1})])
    ]
    assert made[0].snapshot_id == made[1].snapshot_id
    assert len({snapshot.snapshot_id for snapshot in made}) == 3
    assert {snapshot.snapshot_id[:9] for snapshot in made} == {"00000001-"}


def test_rows_may_come_in_pieces(tmp_path: Path, users: Build, at: Clock) -> None:
    pieces = [users(), users("b", "a"), users(), users("c", augment=None)]
    made = publish(tmp_path, {"user_features": iter(pieces)}, replace=False, now=at(1), lineage={})
    assert len(made.tables["user_features"]) == 1
    assert ids(tmp_path, "user_features") == ["a", "b", "c"]
    counts = made.stats["user_features"]
    assert (counts["rows"], counts["rows_added"], counts["own"], counts["none"]) == (3, 3, 2, 1)
    assert publish(tmp_path, {"user_features": iter([])}, replace=False, now=at(2), lineage={}) == made
    wider = users("d", augment=[1.0, 2.0, 3.0], augment_dim=3)
    with pytest.raises(UnfitFeatures, match=r"lengths \[2, 3\]"):
        publish(tmp_path, {"user_features": iter([users("e"), wider])}, replace=True, now=at(2), lineage={})
    assert len(os.listdir(tmp_path / "features" / "user_features")) == 1


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"augment": [1.0, math.nan]}, "null, NaN or infinite .*user_id 'a'"),
    "infinite": ({"augment": [1.0, math.inf]}, "null, NaN or infinite .*user_id 'a'"),
    "null element": ({"augment": [1.0, None]}, "null, NaN or infinite .*user_id 'a'"),
    "length": ({"augment_dim": 3}, "another length than `augment_dim` says .*user_id 'a'"),
    "vector on rung none": ({"rung": "none"}, "null where `rung` is `none`, and only there .*user_id 'a'"),
    "no vector on rung own": ({"augment": None, "rung": "own"}, "null where `rung` is `none`, and only there"),
    "unknown rung": ({"rung": "ladder"}, "`rung` must be one of own, group, global, none"),
    "other length than before": ({"augment": [1.0], "augment_dim": 1}, r"lengths \[1, 2\].* `replace`"),
    "null key": ({"user_id": None}, "column `user_id` has 1 nulls"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_rows_that_break_the_contract_move_nothing(tmp_path: Path, users: Build, at: Clock, case: str) -> None:
    publish(tmp_path, {"user_features": users("a")}, replace=False, now=at(1), lineage={})
    before = (tmp_path / "features" / "manifest.json").read_bytes()
    row, message = BROKEN[case]
    good = users("a0", "z")
    bad = pa.concat_tables([good.slice(0, 1), users("a", **row), good.slice(1)])
    with pytest.raises(UnfitFeatures, match=message):
        publish(tmp_path, {"user_features": bad}, replace=False, now=at(2), lineage={})
    assert (tmp_path / "features" / "manifest.json").read_bytes() == before
    assert len(os.listdir(tmp_path / "features" / "user_features")) == 1


def test_another_schema_is_refused(tmp_path: Path, users: Build, at: Clock) -> None:
    rows = users("a")
    place = rows.column_names.index("partition_no")
    wide = rows.set_column(place, "partition_no", rows["partition_no"].cast(pa.int64()))
    for bad, message in [
        (wide, "`partition_no` is int64, the contract says int32"),
        (rows.drop_columns(["status"]), "the columns .* the contract says"),
        (rows.append_column("extra", pa.array(["x"])), "the columns .*extra"),
    ]:
        with pytest.raises(UnfitFeatures, match=message):
            publish(tmp_path, {"user_features": bad}, replace=False, now=at(1), lineage={})
    with pytest.raises(UsageError, match="no public table `knowledge`"):
        publish(tmp_path, {"knowledge": rows}, replace=False, now=at(1), lineage={})
    assert not (tmp_path / "features").exists()


def test_vectors_may_change_their_length_when_all_rows_are_replaced(tmp_path: Path, users: Build, at: Clock) -> None:
    publish(tmp_path, {"user_features": users("a")}, replace=False, now=at(1), lineage={})
    wider = users("a", augment=[1.0, 2.0, 3.0], augment_dim=3)
    made = publish(tmp_path, {"user_features": wider}, replace=True, now=at(2), lineage={})
    assert made.augment_dim("user_features") == 3


def test_a_run_killed_before_the_pointer_moves_changes_nothing_and_can_be_repeated(
    tmp_path: Path, users: Build, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(tmp_path, {"user_features": users("a")}, replace=False, now=at(1), lineage={})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path, {"user_features": users("b")}, replace=False, now=at(2), lineage={})
    assert read_manifest(tmp_path).current_snapshot() == first
    assert ids(tmp_path, "user_features") == ["a"]
    publish(tmp_path, {"user_features": users("b")}, replace=False, now=at(2), lineage={})
    assert ids(tmp_path, "user_features") == ["a", "b"]


def test_rollback_moves_the_pointer_and_later_ids_still_rise(tmp_path: Path, users: Build, at: Clock) -> None:
    first = publish(tmp_path, {"user_features": users("a")}, replace=False, now=at(1), lineage={})
    second = publish(tmp_path, {"user_features": users("b")}, replace=False, now=at(2), lineage={})
    assert rollback(tmp_path, first.snapshot_id) == first
    assert ids(tmp_path, "user_features") == ["a"]
    assert [snapshot.snapshot_id for snapshot in snapshots(tmp_path)] == [first.snapshot_id, second.snapshot_id]
    third = publish(tmp_path, {"user_features": users("c")}, replace=False, now=at(3), lineage={})
    assert third.parent == first.snapshot_id
    assert third.snapshot_id > second.snapshot_id
    assert ids(tmp_path, "user_features") == ["a", "c"]


def test_after_a_rollback_joins_are_byte_for_byte_what_they_were(
    tmp_path: Path, users: Build, items: Build, at: Clock
) -> None:
    shown = pa.table({"user_id": ["a", "b", "x"], "item_id": ["i", "j", "i"], "ts": [at(2), at(3), at(9)]})

    def joined() -> bytes:
        table = open_warehouse(tmp_path).join(shown).to_arrow().combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
        return sink.getvalue().to_pybytes()

    rows = {"user_features": users("a"), "item_features": items("i", "j", augment=[1.0, 2.0])}
    first = publish(tmp_path, rows, replace=False, now=at(1), lineage={})
    before = joined()
    publish(tmp_path, {"user_features": users("a", "b", created_at=at(5))}, replace=True, now=at(2), lineage={})
    assert joined() != before
    rollback(tmp_path, first.snapshot_id)
    assert joined() == before


def test_rollback_needs_a_snapshot_whose_files_are_there(tmp_path: Path, users: Build, at: Clock) -> None:
    first = publish(tmp_path, {"user_features": users("a")}, replace=False, now=at(1), lineage={})
    second = publish(tmp_path, {"user_features": users("b")}, replace=True, now=at(2), lineage={})
    with pytest.raises(UsageError, match=f"no snapshot `nope`.*{first.snapshot_id}, {second.snapshot_id}"):
        rollback(tmp_path, "nope")
    (tmp_path / first.tables["user_features"][0].path).unlink()
    with pytest.raises(CorruptWarehouse, match="is missing, although snapshot"):
        rollback(tmp_path, first.snapshot_id)
    assert read_manifest(tmp_path).current == second.snapshot_id


def test_the_manifest_is_plain_json_with_paths_that_survive_a_move(tmp_path: Path, users: Build, at: Clock) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    made = publish(old, {"user_features": users("a")}, replace=False, now=at(1), lineage={})
    value = json.loads((old / "features" / "manifest.json").read_bytes())
    assert value["current"] == made.snapshot_id
    path = f"features/user_features/{made.snapshot_id}.parquet"
    assert value["snapshots"][0]["tables"]["user_features"] == [path]
    assert [ref["path"] for ref in value["files"]] == [path]
    old.rename(new)
    assert ids(new, "user_features") == ["a"]


def test_a_manifest_of_version_1_still_loads() -> None:
    current = read_manifest(CASES / "version-1").current_snapshot()
    assert current is not None
    assert current.tables["user_features"][0].rows == 4
    assert current.augment_dim("user_features") == 32


def test_a_warehouse_of_version_1_is_read_from_python_and_sql_and_published_to(
    tmp_path: Path, users: Build, at: Clock
) -> None:
    """Its file was written before rows had a `texts_digest`."""
    root = Path(shutil.copytree(CASES / "version-1-tables", tmp_path / "old"))
    before = open_warehouse(root).table("user_features").to_arrow()
    assert before.schema.equals(FEATURES["user_features"])
    assert before["user_id"].to_pylist() == ["a", "b"]
    assert before["texts_digest"].null_count == 2
    old = read_manifest(root).current
    assert old is not None
    made = publish(root, {"user_features": users("c", texts_digest="t")}, replace=False, now=at(3), lineage={})
    assert (made.parent, made.stats["user_features"]["own"], made.stats["user_features"]["none"]) == (old, 2, 1)
    shown = pa.table({"user_id": ["a", "b", "c"], "ts": [at(9)] * 3})
    joined = open_warehouse(root).join(shown, item=None).to_arrow()
    assert joined["has_user_augment"].to_pylist() == [True, False, True]
    with duckdb.connect(str(root / "features.duckdb"), read_only=True) as con:
        found = con.sql("SELECT user_id, texts_digest FROM lorestream.user_features ORDER BY user_id").fetchall()
        assert found == [("a", None), ("b", None), ("c", "t")]
        con.register("shown", shown)
        by_sql = con.sql("SELECT has_user_augment FROM lorestream.user_features_asof('shown') ORDER BY user_id")
        assert by_sql.fetchall() == [(True,), (False,), (True,)]
    rollback(root, old)
    assert open_warehouse(root).table("user_features").to_arrow().equals(before)


def test_a_warehouse_of_version_2_still_opens() -> None:
    warehouse = open_warehouse(CASES / "version-2")
    assert warehouse.table("user_features").to_arrow()["user_id"].to_pylist() == ["a", "b"]
    assert warehouse.table("item_features").to_arrow()["item_id"].to_pylist() == ["i"]
    found = warehouse.manifest
    assert [s.snapshot_id[:8] for s in found.listed] == ["00000001", "00000003"]
    assert [s[:8] for s in found.retired] == ["00000002"]
    assert [s[:8] for s in found.pinned] == ["00000001"]


def test_a_warehouse_of_a_newer_lorestream_is_left_alone(tmp_path: Path, users: Build, at: Clock) -> None:
    publish(tmp_path, {"user_features": users("a")}, replace=False, now=at(1), lineage={})
    path = tmp_path / "features" / "manifest.json"
    store.write_json(path, {**json.loads(path.read_bytes()), "schema_version": 3})
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"schema version 3, .* up to 2\. Upgrade Lorestream"):
        publish(tmp_path, {"user_features": users("b")}, replace=False, now=at(2), lineage={})
    assert path.read_bytes() == before


def test_a_damaged_manifest_is_named(tmp_path: Path, users: Build, at: Clock) -> None:
    publish(tmp_path, {"user_features": users("a")}, replace=False, now=at(1), lineage={})
    store.write_json(tmp_path / "features" / "manifest.json", {"schema_version": 1, "current": None})
    with pytest.raises(CorruptWarehouse, match=r"manifest\.json does not have the form of a manifest .*snapshots"):
        read_manifest(tmp_path)


def test_a_lost_manifest_is_no_empty_warehouse(tmp_path: Path, users: Build, at: Clock) -> None:
    assert read_manifest(tmp_path).snapshots == ()
    publish(tmp_path, {"user_features": users("a")}, replace=False, now=at(5), lineage={})
    (tmp_path / "features" / "manifest.json").unlink()
    with pytest.raises(CorruptWarehouse, match=r"manifest\.json is missing, although .*user_features.*Restore it"):
        read_manifest(tmp_path)
