"""The list of erased ids, and what ingestion makes of their rows."""

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.entities import ingest_items, ingest_users
from warehouse.erased import LIST_PATH, Erased, Side, add_erased, read_erased
from warehouse.inputs import REJECTED, IngestReport, ingest_behaviours
from warehouse.keys import erased_digest
from warehouse.schemas import BEHAVIOURS
from warehouse.sources import SourceConfig
from warehouse.store import read_table

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ids = st.text(min_size=1, max_size=6)


def test_a_warehouse_without_erasures_bars_nobody(tmp_path: Path) -> None:
    assert read_erased(tmp_path) == Erased()
    assert not Erased()
    assert not Erased().holds("user", "a")


def test_the_list_grows_keeps_its_salt_and_names_nobody(tmp_path: Path) -> None:
    first = add_erased(tmp_path, ["anna-1"], [])
    second = add_erased(tmp_path, ["bert-2"], ["lamp-3"])
    assert second == read_erased(tmp_path)
    assert second.salt == first.salt
    assert [second.holds("user", name) for name in ("anna-1", "bert-2", "lamp-3")] == [True, True, False]
    assert [second.holds("item", name) for name in ("anna-1", "lamp-3")] == [False, True]
    content = (tmp_path / LIST_PATH).read_text()
    assert not any(name in content for name in ("anna", "bert", "lamp"))
    assert add_erased(tmp_path / "elsewhere", ["anna-1"], []).users != first.users, "another salt, another digest"


@settings(deadline=None, max_examples=50)
@given(erased=st.sets(ids, max_size=4), asked=st.sets(ids), side=st.sampled_from(["user", "item"]))
def test_duckdb_bars_whom_python_bars(erased: set[str], asked: set[str], side: Side) -> None:
    digests = frozenset(erased_digest("salt", side, name) for name in erased)
    barred = Erased("salt", **{f"{side}s": digests})
    names = sorted(name for name in asked | erased if "\0" not in name)
    with duckdb.connect() as con:
        barred.register(con, "erased")
        con.register("names", pa.table({"name": pa.array(names, pa.string())}))
        found = con.execute(f"SELECT name FROM names WHERE {barred.sql(side, 'name', 'erased')}").fetchall()
    assert sorted(name for (name,) in found) == [name for name in names if name in erased]
    assert [name for name in names if barred.holds(side, name)] == [name for name in names if name in erased]


@pytest.mark.parametrize(
    ("text", "is_named"),
    [
        ("u1,i1,2020", True),
        ('x;"u1"\t3', True),
        ("user u1", True),
        ("user Ann Lee Smith", True),
        ("u12,i1", False),
        ("u 1", False),
        ("", False),
    ],
)
def test_an_id_is_found_in_free_text_as_a_piece_of_its_own(tmp_path: Path, text: str, is_named: bool) -> None:
    assert add_erased(tmp_path, ["u1", "Ann Lee Smith"], []).named_in(text) == is_named


def ingested(folder: Path, erased: Erased, limit: float = 0.0) -> tuple[IngestReport, list[dict[str, str]]]:
    """The report and the rejected rows of all behaviours in `folder`."""
    aside = folder / "rejected.parquet"
    report = ingest_behaviours(
        SourceConfig(path="in*"), folder, [], folder / "out.parquet", aside, limit, erased=erased
    )
    rows: list[dict[str, str]] = read_table([aside] if aside.exists() else [], REJECTED).to_pylist()
    return report, rows


@settings(deadline=None, max_examples=40)
@given(
    events=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz")), min_size=1, max_size=20),
    users=st.sets(st.sampled_from("abcd")),
    items=st.sets(st.sampled_from("wxyz")),
)
def test_rows_of_erased_users_and_items_are_counted_and_not_kept(
    events: list[tuple[str, str]], users: set[str], items: set[str]
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        erased = add_erased(folder, [f"user-{u}" for u in users], [f"item-{i}" for i in items])
        rows = [
            {"user_id": f"user-{u}", "item_id": f"item-{i}", "ts": NOW.replace(second=n), "value": 1.0, "action": "x"}
            for n, (u, i) in enumerate(events)
        ]
        pq.write_table(pa.Table.from_pylist(rows, BEHAVIOURS), folder / "in.parquet")
        report, aside = ingested(folder, erased)
        barred = [(u, i) for u, i in events if u in users or i in items]
        assert report.reasons == ({"erased": len(barred)} if barred else {})
        assert report.read == report.accepted + report.rejected == len(events)
        assert [row["row"] for row in aside] == ["{}"] * len(barred)
        kept = read_table([folder / "out.parquet"], BEHAVIOURS).to_pylist() if report.accepted else []
        assert [(r["user_id"], r["item_id"]) for r in kept] == [
            (f"user-{u}", f"item-{i}") for u, i in events if (u, i) not in barred
        ]


def test_a_row_that_also_breaks_the_contract_is_not_kept_for_that(tmp_path: Path) -> None:
    lines = ["user_id,item_id,ts", "u1,,2020-01-01", "u1,i1,never", "u1,i1", "u2,i1", "u3,i9,never", "u4,i1,2020-01-01"]
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n")
    report, aside = ingested(tmp_path, add_erased(tmp_path, ["u1"], ["i9"]), limit=0.2)
    assert report.reasons == {"erased": 4, "unparseable_row": 1}
    assert [row["row"] for row in aside if row["reason"] == "erased"] == ["{}"] * 4
    assert [orjson.loads(row["row"])["text"] for row in aside if row["reason"] != "erased"] == ["u2,i1"]


def test_erased_items_and_users_make_no_version(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\ni1,Secret lamp\ni2,Lamp\ni3,\ni1\n")
    (tmp_path / "users.csv").write_text("user_id,job\nu1,spy\nu2,cook\n")
    erased = add_erased(tmp_path, ["u1"], ["i1", "i3"])
    source = SourceConfig(path="items.csv")
    items = ingest_items(
        source, tmp_path, None, NOW, lambda text: "Secret" if "Secret" in text else None, erased=erased
    )
    users = ingest_users(SourceConfig(path="users.csv"), tmp_path, None, NOW, 0.0, erased=erased)
    assert items.versions["item_id"].to_pylist() == ["i2"]
    assert users.versions["user_id"].to_pylist() == ["u2"]
    assert items.report.reasons == {"erased": 3}
    assert {row["row"] for ingest in (items, users) for row in ingest.rejected.to_pylist()} == {"{}"}
