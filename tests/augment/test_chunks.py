"""Chunks of an interval against a count in plain Python: nothing twice, nothing left out, none too large."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.chunks import ChunkPlan, cut_interval
from augment.repertoire import KnowledgeConfig
from augment.scope import EngineIdentity, Scope, Sources
from warehouse.schemas import ITEM_VERSIONS, KNOWLEDGE, PARTITIONS, REQUESTS
from warehouse.store import write_table

START = datetime(2025, 1, 1, tzinfo=UTC)
ENGINE = EngineIdentity("m", "0", {}, "strict")
KINDS = ("user_summary", "user_shift", "item_facts")
HOUR = timedelta(hours=1)

# Per user the hours at which partitions are sealed, ascending, and an item in each.
histories = st.lists(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from("xyz")), max_size=5).map(lambda h: sorted(h)), max_size=4
)


def table(schema: pa.Schema, rows: list[dict[str, object]]) -> pa.Table:
    plain = {pa.string(): "", pa.int32(): 0}
    filled = [
        {f.name: row.get(f.name, plain.get(f.type, START if "time" in str(f.type) else [])) for f in schema}
        for row in rows
    ]
    return pa.Table.from_pylist(filled, schema)


def calls_of(
    history: list[list[tuple[int, str]]], first: int, last: int, cascade: str
) -> dict[tuple[str, str, int | None], int]:
    """The hour of every call of the partitions sealed in [first, last), as `chunks` defines it."""
    found: dict[tuple[str, str, int | None], int] = {}
    for user, sealed in enumerate(history):
        for number, (hour, item) in enumerate(sealed):
            if first <= hour < last:
                found["user_summary", f"u{user}", number] = hour
                if number and cascade != "none":
                    found["user_shift", f"u{user}", number] = hour
                key = ("item_facts", item, None)
                found[key] = min(found.get(key, hour), hour)
    return found


def planned(
    folder: Path, history: list[list[tuple[int, str]]], answered: set[tuple[str, str, int | None]], cascade: str,
    scope: Scope, days: float | None, most: int,
    mode: str = "individual",
) -> ChunkPlan:  # fmt: skip
    partitions = [
        {"user_id": f"u{u}", "partition_no": n, "sealed_at": START + hour * HOUR, "items": [item], "values": [1.0]}
        for u, sealed in enumerate(history)
        for n, (hour, item) in enumerate(sealed)
    ]
    items = [
        {"item_id": item, "title": item, "digest": item, "attributes": "{}", "available_at": None} for item in "xyz"
    ]
    requests = [
        {"request_key": repr(key), "kind": key[0], "entity_id": key[1], "partition_no": key[2], "prompt_version": "v",
         "engine_id": ENGINE.engine_id, "source_digest": key[1]}
        for key in sorted(answered, key=repr)
    ]  # fmt: skip
    texts = [{"request_key": row["request_key"], "text": "t", "status": "ok"} for row in requests]
    files = {}
    for name, schema, rows in (
        ("partitions", PARTITIONS, partitions),
        ("items", ITEM_VERSIONS, items),
        ("requests", REQUESTS, requests),
        ("knowledge", KNOWLEDGE, texts),
    ):
        write_table(folder / f"{name}.parquet", table(schema, rows))
        files[name] = [folder / f"{name}.parquet"]
    sources = Sources(users=[], **files)
    knowledge = KnowledgeConfig.model_validate({"cascade": cascade, "mode": mode})
    versions = dict.fromkeys(KINDS, "v")
    return cut_interval(sources, ENGINE, versions, knowledge, scope, chunk_days=days, chunk_calls=most)


@settings(deadline=None, max_examples=60)
@given(
    history=histories,
    bounds=st.tuples(st.integers(0, 60), st.integers(1, 60)),
    answered=st.sets(st.integers(0, 20)),
    cascade=st.sampled_from(["none", "shift"]),
    days=st.sampled_from([None, 0.5, 1.0]),
    most=st.integers(1, 6),
)
def test_every_missing_call_is_in_one_chunk_and_no_chunk_is_too_large(
    history: list[list[tuple[int, str]]],
    bounds: tuple[int, int],
    answered: set[int],
    cascade: str,
    days: float | None,
    most: int,
) -> None:
    first, last = bounds[0], bounds[0] + bounds[1]
    calls = calls_of(history, first, last, cascade)
    done = {key for place, key in enumerate(sorted(calls, key=repr)) if place in answered}
    missing = Counter(hour for key, hour in calls.items() if key not in done)
    scope = Scope(start=START + first * HOUR, end=START + last * HOUR)
    with TemporaryDirectory() as folder:
        cut = planned(Path(folder), history, done, cascade, scope, days, most)
    assert (cut.calls, cut.answered) == (len(calls), len(done))
    hours = [hour for sealed in history for hour, _ in sealed if first <= hour < last]
    assert cut.partitions == len(hours)
    if not hours:
        assert (cut.start, cut.end, cut.chunks) == (None, None, ())
        return
    assert cut.start == START + min(hours) * HOUR
    assert cut.end == START + max(hours) * HOUR + timedelta(microseconds=1)
    before = cut.start
    for chunk in cut.chunks:
        assert before <= chunk.start < chunk.end <= cut.end
        before = chunk.end
        inside = {hour: n for hour, n in missing.items() if chunk.start <= START + hour * HOUR < chunk.end}
        assert chunk.calls == sum(inside.values()) > 0
        if days is None:
            assert chunk.calls <= most or len(inside) == 1
        else:
            since = chunk.start - scope.start
            assert chunk.end - scope.start <= (since // timedelta(days=days) + 1) * timedelta(days=days)
    assert sum(chunk.calls for chunk in cut.chunks) == sum(missing.values())


def test_chunks_hold_as_many_calls_as_they_may(tmp_path: Path) -> None:
    history = [[(hour, "x") for hour in range(10)]]
    scope = Scope(start=START, end=START + timedelta(days=9))
    # Ten summaries and an item's facts in the first hour.
    cut = planned(tmp_path, history, set(), "none", scope, None, 4)
    assert [chunk.calls for chunk in cut.chunks] == [4, 4, 3]
    assert planned(tmp_path, history, set(), "none", scope, 0.25, 4).chunks[0].end == START + 6 * HOUR


def test_an_interval_in_which_nothing_was_sealed_has_no_chunk_and_says_when_something_was(tmp_path: Path) -> None:
    history = [[(0, "x"), (5, "y")]]
    cut = planned(tmp_path, history, set(), "none", Scope(start=START + 6 * HOUR, end=START + 9 * HOUR), None, 4)
    assert cut == ChunkPlan(None, None, START, START + 5 * HOUR, 0, 0, 0, ())


def test_groups_alone_make_no_chunk(tmp_path: Path) -> None:
    scope = Scope(start=START, end=START + 9 * HOUR)
    cut = planned(tmp_path, [[(0, "x")]], set(), "none", scope, None, 4, mode="collective")
    assert (cut.partitions, cut.calls, cut.chunks) == (1, 0, ())
