import pickle
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from warehouse.entities import (
    EntityIngest,
    TemplateTokenInItem,
    ingest_items,
    ingest_users,
)
from warehouse.errors import MissingColumn, TooManyRejected, WrongType
from warehouse.keys import item_digest
from warehouse.schemas import ALWAYS, ITEM_VERSIONS, USER_VERSIONS
from warehouse.sources import SourceConfig

NOW = datetime(2024, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)


def no_token(text: str) -> str | None:
    return None


def im_start(text: str) -> str | None:
    return "<|im_start|>" if "<|im_start|>" in text else None


def items(
    base: Path,
    columns: dict[str, Any],
    known: pa.Table | None = None,
    now: datetime = NOW,
    find: Callable[[str], str | None] = no_token,
    **given: Any,
) -> EntityIngest:
    pq.write_table(pa.table(columns), base / "items.parquet")
    return ingest_items(SourceConfig(path="items.parquet"), base, known, now, find, **given)


def test_attributes_of_every_kind_are_kept_in_canonical_json(tmp_path: Path) -> None:
    found = items(
        tmp_path,
        {
            "item_id": [1],
            "title": ["Nine Lamps"],
            "year": pa.array([1987], pa.int16()),
            "genres": [["Drama", None, "Noir"]],
            "score": pa.array([0.1], pa.float32()),
            "price": [Decimal("9.50")],
            "weights": pa.array([[0.5, float("nan")]], pa.list_(pa.float32())),
            "adult": [False],
            "released": [date(1987, 5, 4)],
            "nothing": pa.nulls(1),
            "missing": pa.array([None], pa.string()),
            "unknown": [float("nan")],
            "kind": pa.array(["film"]).dictionary_encode(),
        },
    )
    assert found.versions.schema.equals(ITEM_VERSIONS)
    [row] = found.versions.to_pylist()
    attributes = {
        "adult": False,
        "genres": ["Drama", "Noir"],
        "kind": "film",
        "price": 9.5,
        "released": "1987-05-04",
        "score": 0.1,
        "weights": [0.5],
        "year": 1987,
    }
    assert row["attributes"] == orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS).decode()
    assert row["digest"] == item_digest("Nine Lamps", attributes)
    assert (row["item_id"], row["title"]) == ("1", "Nine Lamps")


def test_a_first_version_holds_from_when_the_item_was_available_or_always(tmp_path: Path) -> None:
    seconds = pa.array([None, 1_500_000_000], pa.int64())
    found = items(tmp_path, {"item_id": ["a", "b"], "title": ["A", "B"], "available_at": seconds})
    since = datetime(2017, 7, 14, 2, 40, tzinfo=UTC)
    assert found.versions["valid_from"].to_pylist() == [ALWAYS, since]
    assert found.versions["available_at"].to_pylist() == [None, since]
    assert found.versions["created_at"].to_pylist() == [NOW, NOW]
    assert found.versions["attributes"].to_pylist() == ["{}", "{}"]


def test_only_new_and_changed_items_make_versions_and_a_change_never_reaches_back(tmp_path: Path) -> None:
    future = NOW + timedelta(days=90)
    columns = {"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "available_at": [None, None, future]}
    first = items(tmp_path, columns)
    assert items(tmp_path, columns, first.versions, LATER).report.known == 3
    columns = {"item_id": ["a", "b", "c", "d"], "title": ["A", "B!", "C!", "D"], "available_at": [None] * 4}
    second = items(tmp_path, columns, first.versions, LATER)
    assert (second.report.read, second.report.accepted, second.report.known) == (4, 3, 1)
    assert dict(
        zip(second.versions["item_id"].to_pylist(), second.versions["valid_from"].to_pylist(), strict=True)
    ) == {
        "b": LATER,
        # Not before the version it replaces, which would win the as-of join otherwise.
        "c": future,
        "d": ALWAYS,
    }


def test_an_item_that_changes_back_gets_a_third_version(tmp_path: Path) -> None:
    history = items(tmp_path, {"item_id": ["a"], "title": ["A"]}).versions
    for day, title in enumerate(["B", "A"], start=1):
        found = items(tmp_path, {"item_id": ["a"], "title": [title]}, history, NOW + timedelta(days=day))
        history = pa.concat_tables([found.versions, history])
    assert history.num_rows == 3
    assert items(tmp_path, {"item_id": ["a"], "title": ["A"]}, history, NOW + timedelta(days=3)).report.known == 1


def test_repeated_items_are_counted_when_equal_and_rejected_when_they_differ(tmp_path: Path) -> None:
    columns = {"item_id": ["a", "b", "a", "a"], "title": ["A", "B", "A", "other"]}
    found = items(tmp_path, columns, max_rejected_fraction=0.25)
    assert found.versions["title"].to_pylist() == ["A", "B"]
    assert (found.report.duplicates, found.report.reasons) == (1, {"duplicate_id": 1})
    [row] = found.rejected.to_pylist()
    assert (row["table"], row["reason"]) == ("items", "duplicate_id")
    assert orjson.loads(row["row"]) == {"item_id": "a", "title": "other"}
    assert row["source"] == str(tmp_path / "items.parquet")


def test_items_without_id_title_or_readable_time_are_kept_aside(tmp_path: Path) -> None:
    lines = ["item_id,title,available_at", ",T,", "a,,", "b,  ,", "c,C,soon", "d,D,1600-01-01", "e,E,2020-01-01", "f,F"]
    (tmp_path / "items.csv").write_text("\n".join(lines))
    found = ingest_items(SourceConfig(path="items.csv"), tmp_path, None, NOW, no_token, max_rejected_fraction=1)
    assert found.versions["item_id"].to_pylist() == ["e"]
    assert found.report.read == 7
    assert found.report.reasons == {
        "missing_id": 1,
        "missing_title": 2,
        "bad_timestamp": 1,
        "timestamp_out_of_range": 1,
        "unparseable_row": 1,
    }
    assert found.rejected.num_rows == found.report.rejected == 6
    with pytest.raises(TooManyRejected, match="`items`"):
        ingest_items(SourceConfig(path="items.csv"), tmp_path, None, NOW, no_token)


def test_mapped_columns_bear_the_contract_name_and_blank_headers_are_no_attribute(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(",sku,name,title,cats\n0,s1,Lamp,shadowed,x|y\n")
    source = SourceConfig(path="items.csv", columns={"item_id": "sku", "title": "name", "categories": "cats"})
    [row] = ingest_items(source, tmp_path, None, NOW, no_token).versions.to_pylist()
    assert (row["item_id"], row["title"], row["attributes"]) == ("s1", "Lamp", '{"categories":"x|y"}')


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("item_id", pa.array([1.0])),
        ("title", pa.array([1984])),
        ("available_at", pa.array([1.5])),
        ("cover", pa.array([b"\x00"])),
        ("size", pa.array([{"w": 1}])),
        ("matrix", pa.array([[["a"]]])),
    ],
)
def test_an_item_column_of_the_wrong_type_is_named(tmp_path: Path, name: str, column: pa.Array) -> None:
    with pytest.raises(WrongType, match=rf"`items\.{name}`"):
        items(tmp_path, {"item_id": ["a"], "title": ["A"]} | {name: column})


def test_a_missing_title_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingColumn, match="no column `title`; it has item_id, name"):
        items(tmp_path, {"item_id": ["a"], "name": ["A"]})


@pytest.mark.parametrize(
    ("column", "value"), [("title", "A <|im_start|>system"), ("plot", "<|im_start|>"), ("tags", ["a", "<|im_start|>"])]
)
def test_a_template_token_in_any_text_of_an_item_is_refused_by_name(tmp_path: Path, column: str, value: Any) -> None:
    columns = {"item_id": ["fine", "bad"], "title": ["A", "B"], column: [value[:1], value]}
    with pytest.raises(TemplateTokenInItem) as failure:
        items(tmp_path, columns, find=im_start)
    error = failure.value
    assert (error.item_id, error.column, error.token, error.exit_code) == ("bad", column, "<|im_start|>", 2)
    for said in ("'bad'", column, "<|im_start|>", 'on_template_tokens = "strip"'):
        assert said in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_template_tokens_can_be_let_through_and_are_counted(tmp_path: Path) -> None:
    columns = {"item_id": ["a", "b"], "title": ["A <|im_start|>", "B"]}
    found = items(tmp_path, columns, find=im_start, on_template_tokens="strip")
    assert found.report.template_tokens == 1
    assert found.versions["title"].to_pylist() == ["A <|im_start|>", "B"]
    # What was stored once is not searched again: only new text can be refused.
    assert items(tmp_path, columns, found.versions, LATER, im_start).report.known == 2


def test_users_make_versions_of_their_attributes(tmp_path: Path) -> None:
    source = SourceConfig(path="users.csv")
    (tmp_path / "users.csv").write_text("user_id,age,city\nu,25-34,\nv,18-24,Oslo\nv,18-24,Oslo\n")
    first = ingest_users(source, tmp_path, None, NOW)
    assert first.versions.schema.equals(USER_VERSIONS)
    assert first.versions["attributes"].to_pylist() == ['{"age":"25-34"}', '{"age":"18-24","city":"Oslo"}']
    assert (first.report.accepted, first.report.duplicates) == (2, 1)
    (tmp_path / "users.csv").write_text("user_id,age,city\nu,35-44,\nv,18-24,Oslo\n")
    assert ingest_users(source, tmp_path, first.versions, LATER, skip=first.report.sources).report.read == 2
    second = ingest_users(source, tmp_path, first.versions, LATER)
    assert (second.versions["user_id"].to_pylist(), second.report.known) == (["u"], 1)
    assert second.versions["created_at"].to_pylist() == [LATER]
    assert second.versions["digest"][0] != first.versions["digest"][0]
    assert ingest_users(source, tmp_path, first.versions, LATER, skip=second.report.sources).report.read == 0


def test_users_without_id_are_kept_aside_and_a_missing_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["u", None], "age": [1, 2]}), tmp_path / "users.parquet")
    found = ingest_users(SourceConfig(path="users.parquet"), tmp_path, None, NOW, max_rejected_fraction=0.5)
    assert found.report.reasons == {"missing_id": 1}
    assert found.rejected["table"].to_pylist() == ["users"]
    pq.write_table(pa.table({"age": [1]}), tmp_path / "users.parquet")
    with pytest.raises(MissingColumn, match="`user_id`"):
        ingest_users(SourceConfig(path="users.parquet"), tmp_path, None, NOW)


def test_too_many_rejected_items_show_the_first_of_each_reason(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,available_at\ni1,One,soon\ni2,Two,later\ni3,,\n")
    with pytest.raises(TooManyRejected) as caught:
        ingest_items(SourceConfig(path="items.csv"), tmp_path, None, NOW, no_token)
    assert "bad_timestamp: 2, first available_at = 'soon', item_id = 'i1', title = 'One'" in str(caught.value)
    assert "missing_title: 1, first available_at = None, item_id = 'i3'" in str(caught.value)
