"""What each export holds, byte by byte where it is text, and that it is the table's vectors and nothing later."""

import json
import math
import struct
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lorestream
from warehouse.errors import UsageError
from warehouse.export.text import write_easyrec, write_recbole
from warehouse.export.vectors import Vectors
from warehouse.manifest import publish
from warehouse.reader import Warehouse
from warehouse.schemas import TIMESTAMP

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]


def shop(root: Path, feature_rows: Build, at: Clock) -> Warehouse:
    """Two users of whom `a` has two versions, one without a vector, and one item that is known from second 20 on."""
    users = [
        {"user_id": "b", "valid_from": at(10), "augment": [0.1, -2.0]},
        {"user_id": "a", "valid_from": at(10), "augment": [1.0, 2.0]},
        {"user_id": "a", "valid_from": at(30), "augment": [3.0, 1e-7]},
        {"user_id": "c", "valid_from": at(10), "augment": None},
    ]
    items = [{"item_id": "i", "valid_from": at(20), "augment": [5.0, 6.0, 7.0]}]
    rows = {
        "user_features": feature_rows("user_features", users),
        "item_features": feature_rows("item_features", items, dim=3),
    }
    publish(root, rows, replace=False, now=at(0), lineage={})
    return lorestream.open(root)


@pytest.fixture
def warehouse(tmp_path: Path, feature_rows: Build, at: Clock) -> Warehouse:
    return shop(tmp_path / "warehouse", feature_rows, at)


def test_fuxictr_gets_keys_and_a_matrix_of_the_newest_vectors(warehouse: Warehouse, tmp_path: Path) -> None:
    made: dict[str, Any] = warehouse.export("fuxictr", tmp_path / "out")
    assert made["tables"]["user_features"] == {
        "files": ["user_augment.npz"],
        "rows": 2,
        "without_vector": 1,
        "dim": 2,
        "use": made["tables"]["user_features"]["use"],
    }
    assert "pretrained_emb: user_augment.npz, pretrain_dim: 2" in made["tables"]["user_features"]["use"]
    with np.load(tmp_path / "out" / "user_augment.npz") as found:
        assert found["key"].tolist() == ["a", "b"]
        assert found["key"].dtype.kind == "U"
        assert found["value"].dtype == np.float32
        assert found["value"].tolist() == np.array([[3.0, 1e-7], [0.1, -2.0]], np.float32).tolist()
    with np.load(tmp_path / "out" / "item_augment.npz") as found:
        assert (found["key"].tolist(), found["value"].tolist()) == (["i"], [[5.0, 6.0, 7.0]])


def test_recbole_and_easyrec_get_text_of_a_fixed_form(warehouse: Warehouse, tmp_path: Path) -> None:
    out = tmp_path / "ml"
    warehouse.export("recbole", out)
    warehouse.export("easyrec", out)
    assert (out / "ml.useremb").read_text() == "uid:token\tuser_emb:float_seq\na\t3 1e-7\nb\t0.1 -2\n"
    assert (out / "ml.itememb").read_text() == "iid:token\titem_emb:float_seq\ni\t5 6 7\n"
    assert (out / "user_augment.csv").read_text() == "user_id,user_augment\na,3|1e-7\nb,0.1|-2\n"
    assert (out / "item_augment.csv").read_text() == "item_id,item_augment\ni,5|6|7\n"


def test_a_matrix_starts_with_zeros_for_strangers_and_comes_with_its_ids(warehouse: Warehouse, tmp_path: Path) -> None:
    warehouse.export("npy", tmp_path)
    matrix = np.load(tmp_path / "user_matrix.npy")
    ids = pq.read_table(tmp_path / "user_ids.parquet")
    assert matrix.tolist() == np.array([[0, 0], [3.0, 1e-7], [0.1, -2.0]], np.float32).tolist()
    assert ids.to_pydict() == {"user_id": ["a", "b"], "row": [1, 2]}


def test_feast_gets_every_row_from_the_first_moment_that_may_see_it(
    warehouse: Warehouse, tmp_path: Path, at: Clock
) -> None:
    warehouse.export("feast", tmp_path)
    rows = pq.read_table(tmp_path / "user_features.parquet")
    assert rows.schema.names == ["user_id", "event_timestamp", "created_timestamp", "user_augment", "user_rung"]
    assert rows.schema.field("user_augment").type == pa.list_(pa.float32())
    assert rows["user_id"].to_pylist() == ["a", "a", "b", "c"]
    micros = rows["event_timestamp"].cast(pa.int64()).to_pylist()
    assert micros[:2] == [pa.scalar(at(s), TIMESTAMP).cast(pa.int64()).as_py() + 1 for s in (10, 30)]
    assert rows["user_augment"].to_pylist()[1:3] == [
        pa.scalar(v, pa.list_(pa.float32())).as_py() for v in ([3.0, 1e-7], [0.1, -2.0])
    ]
    assert rows["created_timestamp"].to_pylist() == [at(0)] * 4


def test_a_cut_off_names_the_files_and_leaves_out_what_came_after(
    warehouse: Warehouse, tmp_path: Path, at: Clock
) -> None:
    made: dict[str, Any] = warehouse.export("npy", tmp_path, at=at(30))
    cut = "-at-20200101T000030Z"
    assert made["tables"]["user_features"]["files"] == [f"user_matrix{cut}.npy", f"user_ids{cut}.parquet"]
    # `a` has a row that is valid from second 30, exclusive.
    assert np.load(tmp_path / f"user_matrix{cut}.npy")[1].tolist() == [1.0, 2.0]
    assert json.loads((tmp_path / f"lorestream-npy{cut}.json").read_bytes())["at"] == "2020-01-01T00:00:30+00:00"
    # Before second 20 there is no item yet; a moment without a zone is in UTC.
    early: dict[str, Any] = warehouse.export("feast", tmp_path, at=at(15).replace(tzinfo=None))
    assert list(early["tables"]) == ["user_features"]
    assert early["tables"]["user_features"]["rows"] == 3
    with pytest.raises(UsageError, match="has no vector before 2020-01-01T00:00:05"):
        warehouse.export("recbole", tmp_path, at=at(5))


@pytest.mark.parametrize("to", ["fuxictr", "recbole", "npy", "easyrec", "feast"])
def test_an_export_is_a_function_of_the_snapshot(warehouse: Warehouse, tmp_path: Path, to: Any) -> None:
    contents = []
    for parent in (tmp_path / "one", tmp_path / "two"):
        warehouse.export(to, parent / "shop")
        contents.append({path.name: path.read_bytes() for path in (parent / "shop").iterdir()})
    assert contents[0] == contents[1]
    assert f"lorestream-{to}.json" in contents[0]


moments = st.integers(0, 6)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abc"), moments, moments, st.booleans()), min_size=1, unique_by=lambda r: r[:3]
    ),
    cut=st.one_of(st.none(), moments),
)
@settings(max_examples=25, deadline=None)
def test_looked_up_vectors_are_those_of_a_join_at_the_cut_off(
    feature_rows: Build, at: Clock, rows: list[tuple[str, int, int, bool]], cut: int | None
) -> None:
    made = [
        {"user_id": user, "valid_from": at(v), "created_at": at(c), "augment": [float(number), 0.5] if known else None}
        for number, (user, v, c, known) in enumerate(rows)
    ]
    with TemporaryDirectory() as folder:
        root, out = Path(folder) / "warehouse", Path(folder) / "out"
        publish(root, {"user_features": feature_rows("user_features", made)}, replace=False, now=at(0), lineage={})
        warehouse = lorestream.open(root)
        shown = pa.table({"user_id": list("abc"), "ts": [at(99 if cut is None else cut)] * 3})
        joined = warehouse.join(shown, item=None, fill="null").to_arrow()
        expected = {u: v for u, v in zip("abc", joined["user_augment"].to_pylist(), strict=True) if v is not None}
        if not expected:
            with pytest.raises(UsageError, match="has no vector"):
                warehouse.export("fuxictr", out, at=None if cut is None else at(cut))
            return
        made_files: Any = warehouse.export("fuxictr", out, at=None if cut is None else at(cut))
        [name] = made_files["tables"]["user_features"]["files"]
        with np.load(out / name) as found:
            assert dict(zip(found["key"].tolist(), found["value"].tolist(), strict=True)) == expected


def float32(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


@given(bits=st.lists(st.integers(0, 2**32 - 1).filter(lambda b: math.isfinite(float32(b))), min_size=2, max_size=2))
@settings(max_examples=200, deadline=None)
def test_every_number_is_read_back_as_it_was(bits: list[int]) -> None:
    numbers = np.array([float32(b) for b in bits], np.float32)
    vectors = Vectors("user", pa.array(["u"]), pa.array(numbers), 2, 0)
    with TemporaryDirectory() as folder:
        [recbole] = write_recbole(Path(folder), vectors, "")
        [easyrec] = write_easyrec(Path(folder), vectors, "")
        texts = recbole.read_text().split()[-2:], easyrec.read_text().split(",")[-1].split("|")
    for found in texts:
        # Both readers parse to double precision first.
        assert np.array([float(text) for text in found]).astype(np.float32).tobytes() == numbers.tobytes()


def test_easyrec_s_file_is_what_an_arrow_csv_dataset_reads(warehouse: Warehouse, tmp_path: Path) -> None:
    """TorchEasyRec's CSV reader is a pyarrow dataset with a delimiter and column types."""
    warehouse.export("easyrec", tmp_path)
    convert = pa_csv.ConvertOptions(column_types={"user_id": pa.string(), "user_augment": pa.string()})
    form = pa_dataset.CsvFileFormat(parse_options=pa_csv.ParseOptions(delimiter=","), convert_options=convert)
    table = pa_dataset.dataset(tmp_path / "user_augment.csv", format=form).to_table()
    vectors = [np.array(text.split("|"), np.float32).tolist() for text in table["user_augment"].to_pylist()]
    assert dict(zip(table["user_id"].to_pylist(), vectors, strict=True)) == {
        "a": np.array([3.0, 1e-7], np.float32).tolist(),
        "b": np.array([0.1, -2.0], np.float32).tolist(),
    }


@pytest.mark.parametrize(
    ("write", "entity", "message"),
    [
        (write_recbole, "a\tb", "'a\\\\tb' cannot be exported to RecBole"),
        (write_recbole, '"q"', "cannot be exported to RecBole"),
        (write_recbole, "NA", "user id 'NA' cannot be exported to RecBole, which reads it as a missing value"),
        (write_easyrec, "a,b", "'a,b' cannot be exported to EasyRec"),
        (write_easyrec, "a\nb", "cannot be exported to EasyRec"),
    ],
)
def test_an_id_that_a_format_cannot_hold_is_refused_by_name(
    tmp_path: Path, write: Callable[..., Any], entity: str, message: str
) -> None:
    vectors = Vectors("user", pa.array(["fine", entity]), pa.array([1.0, 2.0], pa.float32()), 1, 0)
    with pytest.raises(UsageError, match=message):
        write(tmp_path, vectors, "")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_an_export_are_named(warehouse: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: warehouse.export("libsvm", tmp_path), "no export to 'libsvm'; it is one of fuxictr, recbole"),  # type: ignore[arg-type]
        (lambda: warehouse.export("npy", tmp_path / "file"), "is a file. Name a folder"),
        (lambda: warehouse.export("npy", tmp_path / "file" / "x"), "cannot be made: Not a directory"),
        (lambda: warehouse.export("feast", warehouse.root / "features" / "mine"), "lies in the warehouse"),
        (lambda: warehouse.export("npy", tmp_path, snapshot="nope"), "no snapshot `nope`"),
    ]
    for call, message in calls:
        with pytest.raises(UsageError, match=message):
            call()
    assert (tmp_path / "file").read_text() == "kept"
