"""Which rows an erasure concerns and what becomes of them, against the rules said in plain Python."""

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.ledger import Ledger
from warehouse.rewrite import rows_where
from warehouse.schemas import GROUPS, ITEM_VERSIONS, KNOWLEDGE, OPEN_PARTITIONS, PARTITIONS, REQUESTS
from warehouse.sql import connect
from warehouse.store import write_table
from warehouse.traces import Subjects, edits, feature_conditions, open_traces, rejected_rows

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG = "the answer begins with so many letters that it cannot be there by accident"

users = st.sampled_from(["a", "b", "c"])
items = st.sampled_from(["a", "x", "y"])
lists = st.lists(items, min_size=1, max_size=4)
subjects = st.builds(Subjects, st.frozensets(users, max_size=2), st.frozensets(items, max_size=2))


def rows_as(schema: pa.Schema, rows: list[dict[str, object]]) -> pa.Table:
    """Rows with a plain value where they say nothing."""
    plain = {pa.string(): "", pa.int32(): 0}
    filled = [
        {f.name: row.get(f.name, plain.get(f.type, NOW if "time" in str(f.type) else [])) for f in schema}
        for row in rows
    ]
    return pa.Table.from_pylist(filled, schema)


def committed(root: Path, **tables: pa.Table) -> Ledger:
    add = {}
    for name, table in tables.items():
        path = root / name / "1.parquet"
        write_table(path, table)
        if name != "knowledge":
            add[name] = [path]
    ledger = Ledger(root)
    ledger.commit("test", add=add, now=NOW)
    return ledger


def doomed(root: Path, ledger: Ledger, whom: Subjects) -> set[str]:
    """Keys of the requests that go."""
    with connect() as con:
        open_traces(con, ledger, sorted((root / "knowledge").glob("*.parquet")), whom)
        gone = con.execute("SELECT request_key FROM requests EXCEPT SELECT request_key FROM live_keys").fetchall()
    return {key for (key,) in gone}


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(users, lists), min_size=1, max_size=6), whom=subjects)
def test_partitions_lose_the_events_of_erased_items_and_open_ones_too(
    rows: list[tuple[str, list[str]]], whom: Subjects
) -> None:
    sealed = [
        {"user_id": u, "partition_no": n, "items": i, "values": [float(k) for k in range(len(i))], "digest": f"d{n}"}
        for n, (u, i) in enumerate(rows)
    ]
    still_open = [row | {"ts": [NOW.replace(day=1 + k) for k in range(len(row["items"]))]} for row in sealed]
    for table, schema, given_rows, beside in (
        ("partitions", PARTITIONS, sealed, ["values"]),
        ("open", OPEN_PARTITIONS, still_open, ["values", "ts"]),
    ):
        before = rows_as(schema, given_rows)
        after, stays = edits(whom)[table](before)
        assert after.schema == schema
        for old, new, kept in zip(before.to_pylist(), after.to_pylist(), stays, strict=True):
            left = [k for k, item in enumerate(old["items"]) if item not in whom.items]
            assert kept == (old["user_id"] not in whom.users and (table == "open" or bool(left)))
            for name in ("items", *beside):
                assert new[name] == [old[name][k] for k in left]
            same = set(schema.names) - {"items", "digest", *beside}
            assert {name: new[name] for name in same} == {name: old[name] for name in same}
    again, _ = edits(whom)["partitions"](rows_as(PARTITIONS, sealed))
    assert (
        again["digest"].to_pylist() == edits(whom)["partitions"](rows_as(PARTITIONS, sealed))[0]["digest"].to_pylist()
    )


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(users, lists), min_size=1, max_size=5), whom=subjects)
def test_a_users_vectors_go_with_the_user_and_with_an_emptied_partition(
    rows: list[tuple[str, list[str]]], whom: Subjects
) -> None:
    with TemporaryDirectory() as name, connect() as con:
        root = Path(name)
        sealed = [{"user_id": u, "partition_no": n, "items": i} for n, (u, i) in enumerate(rows)]
        ledger = committed(root, partitions=rows_as(PARTITIONS, sealed))
        features = pa.table({"user_id": [u for u, _ in rows], "partition_no": pa.array(range(len(rows)), pa.int32())})
        write_table(root / "features.parquet", features)
        open_traces(con, ledger, [], whom)
        found = rows_where(con, [root / "features.parquet"], feature_conditions(whom)["user_features"])
        gone = [n for n, (u, i) in enumerate(rows) if u in whom.users or set(i) <= whom.items]
        assert found.get(root / "features.parquet", np.zeros(0)).tolist() == gone


def request(key: str, kind: str, entity: str, number: int | None, prompt: str, engine: str = "e") -> dict[str, object]:
    return {
        "request_key": key, "kind": kind, "entity_id": entity, "partition_no": number, "prompt": prompt,
        "engine_id": engine, "group": None,
    }  # fmt: skip


def answer(key: str, text: str) -> dict[str, object]:
    return {"request_key": key, "text": text, "status": "ok"}


def test_what_was_asked_with_an_erased_title_goes_and_what_quotes_such_a_text(tmp_path: Path) -> None:
    partitions = [{"user_id": u, "partition_no": n, "items": ["x"] if (u, n) == ("a", 1) else ["y"]}
                  for u in "ab" for n in range(4)]  # fmt: skip
    requests = [
        *(request(f"{u}{n}", "user_summary", u, n, f"history {n}") for u in "ab" for n in range(3)),
        request("a1-shift", "user_shift", "a", 1, "previous: nothing, current: " + LONG),
        request("a2-shift", "user_shift", "a", 2, f"previous: <{LONG[:40].upper()}…> current: else"),
        request("a3", "user_summary", "a", 3, "previous: what has changed is this and that, history 3"),
        request("a3-shift", "user_shift", "a", 3, "previous: else current: more"),
        request("b2-shift", "user_shift", "b", 2, f"previous: {LONG} current: else"),
        request("x", "item_facts", "x", None, "Hidden lamp"),
        request("y", "item_facts", "y", None, "lamp"),
        request("g1", "group_likes", "g1", None, "Hidden lamp"),
        request("g2", "group_likes", "g2", None, "lamp"),
        request("mine", "user_summary", "a", 3, "", "import:1"),
        request("theirs", "user_summary", "a", 3, "", "import:1"),
    ]
    texts = [answer("a1", LONG), answer("a1-shift", "fine"), answer("a2", "else"), answer("b1", LONG)]
    texts += [answer("a2-shift", "What has changed is: this, and that"), answer("mine", "Loves the Hidden lamp")]
    ledger = committed(
        tmp_path,
        partitions=rows_as(PARTITIONS, partitions),
        requests=rows_as(REQUESTS, requests),
        items=rows_as(ITEM_VERSIONS, [{"item_id": "x", "title": "Hidden lamp"}, {"item_id": "y", "title": "lamp"}]),
        groups=rows_as(
            GROUPS, [{"group_id": g, "kind": "group_likes", "named": n} for g, n in (("g1", ["x"]), ("g2", ["y"]))]
        ),
        knowledge=rows_as(KNOWLEDGE, texts),
    )  # fmt: skip
    gone = {"a1", "a1-shift", "a2-shift", "a3", "x", "g1", "mine"}
    assert doomed(tmp_path, ledger, Subjects(items=frozenset("x"))) == gone
    assert doomed(tmp_path, ledger, Subjects(users=frozenset("x"))) == set()
    assert doomed(tmp_path, ledger, Subjects(users=frozenset("b"))) == {"b0", "b1", "b2", "b2-shift"}


def test_a_key_goes_only_with_the_last_who_asked_it(tmp_path: Path) -> None:
    asked = [request("k", "user_summary", u, 0, "same") for u in "ab"]
    ledger = committed(tmp_path, requests=rows_as(REQUESTS, asked))
    assert doomed(tmp_path, ledger, Subjects(users=frozenset("a"))) == set()
    assert doomed(tmp_path, ledger, Subjects(users=frozenset("ab"))) == {"k"}


@pytest.mark.parametrize(
    ("row", "is_theirs"),
    [
        ({"user_id": "u1", "item_id": "i1", "ts": "never"}, True),
        ({"who": "u1", "item_id": "i1"}, True),
        ({"user_id": "u2", "item_id": "u1"}, False),
        ({"user_id": "u2", "item_id": "i9"}, True),
        ({"user_id": None, "item_id": "i1"}, False),
        ({"item_id": "i1", "title": "u1"}, False),
        ({"line": 3, "text": "u1;i1", "error": "too few"}, True),
        ({"line": 3, "text": "u11;i1", "error": "too few"}, False),
        ({"row": 7, "detail": "user u1"}, True),
        ({}, False),
    ],
)
def test_rejected_rows_are_told_by_their_ids_and_free_text_by_its_pieces(
    tmp_path: Path, row: dict[str, object], is_theirs: bool
) -> None:
    path = tmp_path / "1.parquet"
    write_table(path, pa.table({"row": [orjson.dumps(r).decode() for r in ({}, row)]}))
    whom = Subjects(frozenset({"u1"}), frozenset({"i9"}))
    found = rejected_rows([path], whom, {"user_id", "who"}, {"item_id"})
    assert {file: rows.tolist() for file, rows in found.items()} == ({path: [1]} if is_theirs else {})
