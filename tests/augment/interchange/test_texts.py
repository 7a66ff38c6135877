"""Reading texts that were written elsewhere: what is taken, and why the rest is not."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.interchange.faults import FaultReason, ImportFault, count_faults
from augment.interchange.rows import time_of
from augment.interchange.texts import EntityKind, ImportedText, read_texts
from prompts.render import Kind
from warehouse.errors import InputError, UsageError

SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "knowledge"


def parquet(folder: Path, columns: Mapping[str, object], name: str = "texts.parquet") -> Path:
    pq.write_table(pa.table(dict(columns)), folder / name)
    return folder / name


def split(path: Path, entity: str | None = None) -> tuple[list[ImportedText], list[ImportFault]]:
    texts: list[ImportedText] = []
    faults: list[ImportFault] = []
    for row in read_texts(path, entity):
        if isinstance(row, ImportedText):
            texts.append(row)
        else:
            faults.append(row)
    return texts, faults


def test_every_kind_is_known_by_its_name_and_is_a_kind_of_knowledge(tmp_path: Path) -> None:
    names = [*EntityKind, "user_positive", "user_negative"]
    path = parquet(tmp_path, {"entity": names, "id": range(7), "text": ["t"] * 7, "model": ["m"] * 7})
    texts, faults = split(path)
    assert not faults
    assert [text.entity.knowledge for text in texts] == [
        Kind.ITEM_FACTS,
        Kind.USER_SUMMARY,
        Kind.GROUP_ITEMS,
        Kind.GROUP_LIKES,
        Kind.GROUP_DISLIKES,
        Kind.GROUP_LIKES,
        Kind.GROUP_DISLIKES,
    ]
    assert [text.entity_id for text in texts] == list("0123456")


def test_item_in_a_file_of_groups_is_a_group_of_items(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"entity": ["item"], "group_id": [3], "text": ["t"], "model": ["m"]})
    ((text,), _) = split(path)
    assert (text.entity, text.entity_id) == (EntityKind.ITEM_GROUP, "3")


def test_every_row_that_cannot_be_a_text_has_its_reason(tmp_path: Path) -> None:
    rows: Sequence[tuple[str | None, str | None, str | None, str | None, FaultReason | None]] = [
        ("item", "a", "sound", "m", None),
        ("item", "b", "", "m", FaultReason.EMPTY_TEXT),
        ("item", "b", " \n", "m", FaultReason.EMPTY_TEXT),
        ("item", "b", None, "m", FaultReason.EMPTY_TEXT),
        ("film", "b", "t", "m", FaultReason.UNKNOWN_ENTITY),
        (None, "b", "t", "m", FaultReason.UNKNOWN_ENTITY),
        ("item", None, "t", "m", FaultReason.MISSING_ID),
        ("item", " ", "t", "m", FaultReason.MISSING_ID),
        ("item", "b", "t", None, FaultReason.MISSING_MODEL),
        ("item", "b", "t", "", FaultReason.MISSING_MODEL),
        ("item", "a", "another", "m", FaultReason.DUPLICATE_ID),
        # The rows above that named b were no texts, so this is its first.
        ("item", "b", "sound", "m", None),
        ("user", "a", "sound", "m", None),
    ]
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("entity", "id", "text", "model"))}
    texts, faults = split(parquet(tmp_path, columns))
    assert [(t.row, t.entity, t.entity_id) for t in texts] == [(1, "item", "a"), (12, "item", "b"), (13, "user", "a")]
    assert [(f.row, f.reason) for f in faults] == [(n, row[4]) for n, row in enumerate(rows, 1) if row[4]]
    assert count_faults(faults) == {
        "empty_text": 3,
        "missing_id": 2,
        "missing_model": 2,
        "unknown_entity": 2,
        "duplicate_id": 1,
    }


@pytest.mark.parametrize(
    "column",
    [
        {"id": [1.5]},
        {"id": [True]},
        {"text": [7]},
        {"model": [7]},
        {"prompt": [["a", "list"]]},
        {"created": ["yesterday"]},
        {"created": [True]},
        # Milliseconds taken for seconds.
        {"created": [1_700_000_000_000]},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_a_fault_of_its_row(tmp_path: Path, column: dict[str, object]) -> None:
    sound = {"entity": ["item"], "id": ["a"], "text": ["t"], "model": ["m"]}
    texts, (fault,) = split(parquet(tmp_path, {**sound, **column}))
    assert not texts
    assert fault.reason is FaultReason.WRONG_TYPE
    assert fault.detail


def test_prompts_and_times_are_kept_where_they_are_told(tmp_path: Path) -> None:
    when = datetime(2023, 12, 1, 8, 0, tzinfo=UTC)
    columns: dict[str, object] = {
        "item_id": ["a", "b"],
        "text": ["t", "t"],
        "model": ["m", " m "],
        "prompt": ["asked", " "],
        "created": [int(when.timestamp()), None],
        "something_else": [1.0, 2.0],
    }
    texts, _ = split(parquet(tmp_path, columns), "item")
    assert texts == [
        ImportedText(1, EntityKind.ITEM, "a", "t", "m", "asked", when),
        ImportedText(2, EntityKind.ITEM, "b", "t", "m", None, None),
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1701417600, datetime(2023, 12, 1, 8, tzinfo=UTC)),
        ("1701417600", datetime(2023, 12, 1, 8, tzinfo=UTC)),
        ("2023-12-01T09:00:00+01:00", datetime(2023, 12, 1, 8, tzinfo=UTC)),
        ("2023-12-01 08:00:00", datetime(2023, 12, 1, 8, tzinfo=UTC)),
        (datetime(2023, 12, 1, 8), datetime(2023, 12, 1, 8, tzinfo=UTC)),
        ("", None),
        (None, None),
    ],
)
def test_times_come_in_the_forms_that_files_have(value: object, expected: datetime | None) -> None:
    assert time_of(value) == expected


texts_of_any_kind = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=20)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from(["007", "7", "x,y", '"q"', ""]), texts_of_any_kind), max_size=8))
def test_a_csv_file_says_the_same_as_a_parquet_file(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ids keep their leading zeros; commas, quotes and line breaks stay in their text."""
    folder = tmp_path_factory.mktemp("both")
    columns = {
        "item_id": pa.array([i for i, _ in rows], pa.string()),
        "text": pa.array([text for _, text in rows], pa.string()),
        "model": pa.array(["m"] * len(rows), pa.string()),
    }
    pa.csv.write_csv(pa.table(columns), folder / "texts.csv")
    assert split(folder / "texts.csv", "item") == split(parquet(folder, columns), "item")


@pytest.mark.parametrize(
    ("columns", "entity", "error", "words"),
    [
        ({"id": ["a"], "text": ["t"], "model": ["m"]}, None, InputError, "no column `entity` .*--entity"),
        ({"item_id": ["a"], "model": ["m"]}, "item", InputError, "no column `text`; it has item_id, model"),
        ({"item_id": ["a"], "text": ["t"]}, "item", InputError, "no column `model`"),
        ({"text": ["t"], "model": ["m"]}, "item", InputError, "no id column"),
        ({"item_id": [1], "user_id": [1], "text": ["t"], "model": ["m"]}, "item", InputError, "has item_id, user_id"),
        ({"entity": ["item"], "id": [1], "text": ["t"], "model": ["m"]}, "item", UsageError, "Leave --entity out"),
        ({"item_id": [1], "text": ["t"], "model": ["m"]}, "user", UsageError, "--entity user cannot be what `item_id`"),
        ({"id": [1], "text": ["t"], "model": ["m"]}, "film", UsageError, "Choose one of user_positive"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_as_a_whole(
    tmp_path: Path, columns: dict[str, object], entity: str | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        list(read_texts(parquet(tmp_path, columns), entity))


def test_a_file_that_is_absent_damaged_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        list(read_texts(tmp_path / "none.parquet", "item"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"bad\.parquet cannot be read"):
        list(read_texts(tmp_path / "bad.parquet", "item"))
    (tmp_path / "texts.json").write_text("{}")
    with pytest.raises(InputError, match=r"neither \.parquet nor \.csv"):
        list(read_texts(tmp_path / "texts.json", "item"))
    (tmp_path / "uneven.csv").write_text("item_id,text,model\na,t,m\nb,t\n")
    with pytest.raises(InputError, match=r"uneven\.csv cannot be read.*3 columns, got 2"):
        list(read_texts(tmp_path / "uneven.csv", "item"))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no evaluation data at {SHARED}")
@pytest.mark.parametrize(
    ("name", "entity", "kinds", "faults"),
    [
        ("ml-1m-item-colakg", "item", {"item": 3882}, {"empty_text": 1}),
        (
            "ml-1m-collective",
            None,
            {"item_group": 107, "user_likes_group": 135, "user_dislikes_group": 135},
            {},
        ),
        (
            "amazon-books-collective",
            None,
            {"item_group": 459, "user_likes_group": 137, "user_dislikes_group": 984},
            {},
        ),
    ],
)
def test_real_texts_are_taken(name: str, entity: str | None, kinds: dict[str, int], faults: dict[str, int]) -> None:
    """Counts as the README beside the data has them."""
    texts, found = split(SHARED / f"{name}.parquet", entity)
    assert {kind: sum(text.entity == kind for text in texts) for kind in kinds} == kinds
    assert sum(kinds.values()) == len(texts)
    assert count_faults(found) == faults


def test_a_csv_file_may_hold_a_long_text_and_must_be_utf_8(tmp_path: Path) -> None:
    long = "A lamp of brass. " * 120_000
    (tmp_path / "long.csv").write_text(f'item_id,text,model\na,"{long}",m\n', encoding="utf-8")
    ((text,), _) = split(tmp_path / "long.csv", "item")
    assert text.text == long
    (tmp_path / "latin.csv").write_bytes("item_id,text,model\na,caf\u00e9,m\n".encode("latin-1"))
    with pytest.raises(InputError, match="Save it as UTF-8"):
        split(tmp_path / "latin.csv", "item")
