import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from warehouse.entities import ingest_items, ingest_users
from warehouse.errors import InputError
from warehouse.inputs import ingest_behaviours
from warehouse.movielens import ITEMS, USERS, import_movielens, read_movielens
from warehouse.schemas import BEHAVIOURS
from warehouse.sources import SourceConfig

SHARED = Path(__file__).parents[2].parent / "shared"

# The layouts of the official files, with titles that no film bears.
DAT = {
    "ratings.dat": b"1::10::5::978300760\n1::12::3.5::978300760\n2::10::1::978300800\n",
    "movies.dat": "10::Nine Lamps (1987)::Drama|Film-Noir\n12::Café: The ::Sequel, A (2001)::Comedy\n".encode(
        "latin-1"
    ),
    "users.dat": b"1::F::1::10::48067\n2::M::56::20::70072\n",
    "README": b"not a table",
}
CSV = {
    "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,10,5.0,978300760\r\n1,12,3.5,978300761\r\n",
    "movies.csv": (
        "movieId,title,genres\n"
        '10,"Lamps, Nine (a.k.a. ""Neuf"") (1987)",Drama|Noir\n'
        "12,Línea (2006\u20132007),(no genres listed)\n"
        "13,Untitled,Comedy\n"
    ).encode(),
    "tags.csv": b"userId,movieId,tag,timestamp\n",
}


def folder(base: Path, files: dict[str, bytes]) -> Path:
    base.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (base / name).write_bytes(content)
    return base


def archive(path: Path, files: dict[str, bytes], inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(inside + name, content)
    return path


def test_dat_files_become_the_input_contract(tmp_path: Path) -> None:
    found = read_movielens(folder(tmp_path / "ml", DAT))
    assert found.behaviours.schema.equals(BEHAVIOURS)
    assert found.items.schema.equals(ITEMS)
    assert found.users is not None
    assert found.users.schema.equals(USERS)
    ts = datetime(2000, 12, 31, 22, 12, 40, tzinfo=UTC)
    assert found.behaviours.to_pylist()[1] == {
        "user_id": "1",
        "item_id": "12",
        "ts": ts,
        "value": 3.5,
        "action": "interact",
    }
    assert found.items.to_pylist() == [
        {"item_id": "10", "title": "Nine Lamps (1987)", "genres": ["Drama", "Film-Noir"], "year": 1987},
        {"item_id": "12", "title": "Café: The ::Sequel, A (2001)", "genres": ["Comedy"], "year": 2001},
    ]
    assert found.users.to_pylist() == [
        {"user_id": "1", "gender": "female", "age": "under 18", "occupation": "K-12 student"},
        {"user_id": "2", "gender": "male", "age": "56 or older", "occupation": "writer"},
    ]
    assert any(note.startswith("2 of 3 events share their second") for note in found.notes)


def test_csv_files_with_quoted_titles_become_the_input_contract(tmp_path: Path) -> None:
    found = read_movielens(folder(tmp_path / "ml", CSV))
    assert found.behaviours["value"].to_pylist() == [5.0, 3.5]
    assert found.items.to_pylist() == [
        {"item_id": "10", "title": 'Lamps, Nine (a.k.a. "Neuf") (1987)', "genres": ["Drama", "Noir"], "year": 1987},
        {"item_id": "12", "title": "Línea (2006\u20132007)", "genres": [], "year": 2006},
        {"item_id": "13", "title": "Untitled", "genres": ["Comedy"], "year": None},
    ]
    assert found.users is None
    assert any("no users table" in note for note in found.notes)


@pytest.mark.parametrize("inside", ["", "ml-tiny/"])
@pytest.mark.parametrize("files", [DAT, CSV])
def test_a_zip_reads_like_its_folder_also_one_level_down(tmp_path: Path, files: dict[str, bytes], inside: str) -> None:
    unpacked = read_movielens(folder(tmp_path / "ml", files))
    zipped = read_movielens(archive(tmp_path / "ml.zip", files, inside))
    nested = read_movielens(folder(tmp_path / "outer" / "ml-tiny", files).parent)
    assert unpacked == zipped == nested


def test_a_set_in_utf8_dat_files_without_users_is_read(tmp_path: Path) -> None:
    files = {"ratings.dat": DAT["ratings.dat"], "movies.dat": "10::Éclair (1990)::(no genres listed)\n".encode()}
    found = read_movielens(folder(tmp_path / "ml", files))
    assert found.items["title"].to_pylist() == ["Éclair (1990)"]
    assert found.users is None


@pytest.mark.parametrize(
    ("files", "name", "content", "line"),
    [
        (DAT, "ratings.dat", b"1::10::5::978300760\n\n1::10::5\n", 3),
        (DAT, "ratings.dat", b"1::10::5::978300760\n1::10::five::978300760\n", 2),
        (DAT, "ratings.dat", b"1::10::nan::978300760\n", 1),
        (DAT, "ratings.dat", b"1::10::5::\n", 1),
        (DAT, "ratings.dat", b"1::10::5::978300760\n1,10::5::978300760\n", 2),
        (DAT, "movies.dat", b"10::Nine Lamps (1987)::Drama\nNine Lamps\n", 2),
        (DAT, "movies.dat", b"ten::Nine Lamps (1987)::Drama\n", 1),
        (DAT, "users.dat", b"1::F::1::10::48067\n2::M::56::21::70072\n", 2),
        (DAT, "users.dat", b"1::F::17::10::48067\n", 1),
        (DAT, "users.dat", b"1::F::1::10\n", 1),
        (CSV, "ratings.csv", b"userId,movieId,rating\n1,10,5.0\n", 1),
        (CSV, "ratings.csv", CSV["ratings.csv"] + b"1,10,5.0\n", 4),
        (CSV, "ratings.csv", CSV["ratings.csv"] + b"1,,5.0,978300761\n", 4),
        (CSV, "movies.csv", b"id,title,genres\n", 1),
        (CSV, "movies.csv", CSV["movies.csv"] + b"14,Lamps, Ten,Drama\n", 5),
        (CSV, "movies.csv", CSV["movies.csv"] + b'14,"Ten Lamps,Drama\n15,B,C\n', 5),
        (CSV, "movies.csv", CSV["movies.csv"] + b"14,Caf\xe9 (1990),Drama\n", 5),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(
    tmp_path: Path, files: dict[str, bytes], name: str, content: bytes, line: int
) -> None:
    for path in (
        folder(tmp_path / "ml", files | {name: content}),
        archive(tmp_path / "z.zip", files | {name: content}),
    ):
        with pytest.raises(InputError, match=rf"{name}, line {line}[,:]"):
            import_movielens(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_set_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ratings\.dat, movies\.dat; ratings\.csv.*It holds README") as failure:
        read_movielens(folder(tmp_path / "ml", {"README": b""}))
    assert str(tmp_path / "ml") in str(failure.value)
    with pytest.raises(InputError, match=r"ratings\.dat.*It holds nothing"):
        read_movielens(archive(tmp_path / "empty.zip", {}))
    with pytest.raises(InputError, match=r"but not movies\.dat beside it"):
        read_movielens(folder(tmp_path / "half", {"ratings.dat": DAT["ratings.dat"]}))


def test_a_path_that_is_no_folder_and_no_zip_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        read_movielens(tmp_path / "absent")
    (tmp_path / "torn.zip").write_bytes(archive(tmp_path / "ml.zip", DAT).read_bytes()[:-40])
    with pytest.raises(InputError, match=r"torn\.zip"):
        read_movielens(tmp_path / "torn.zip")
    content = bytearray((tmp_path / "ml.zip").read_bytes())
    place = content.index(b"978300760")
    content[place : place + 4] = b"1234"
    (tmp_path / "flipped.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"flipped\.zip is damaged"):
        read_movielens(tmp_path / "flipped.zip")


def parquet(base: Path, **replaced: pa.Table) -> Path:
    tables = {
        "ratings": pa.table(
            {
                "user_id": pa.array([1, 1, 2], pa.int32()),
                "item_id": [10, 12, 10],
                "rating": pa.array([5, 3, 1], pa.int8()),
                "timestamp": [30, 20, 20],
                "timestamp_imputed": [False, True, True],
                "chrono_rank": [1, 0, None],
            }
        ),
        "movies": pa.table({"item_id": [10, 12], "title": ["Nine Lamps (1987)", "X"], "genres": [["Drama"], []]}),
        "users": pa.table({"user_id": [1, 2], "gender": ["F", "M"], "age": [1, 56], "occupation": [10, 20]}),
    } | replaced
    base.mkdir()
    for name, table in tables.items():
        pq.write_table(table, base / f"{name}.parquet")
    return base


def test_parquet_tables_become_the_contract_and_imputed_times_stay_and_are_told(tmp_path: Path) -> None:
    found = read_movielens(parquet(tmp_path / "ml"))
    assert [row["ts"].timestamp() for row in found.behaviours.to_pylist()] == [30, 20, 20]
    assert found.notes == [
        "2 of 3 timestamps are imputed, taken as they are; 1 of them are rough guesses, whose order within the user is "
        "not known."
    ]
    assert found.users is not None
    assert found.users["age"].to_pylist() == ["under 18", "56 or older"]


def test_parquet_users_with_words_keep_them(tmp_path: Path) -> None:
    words = pa.table({"user_id": [1], "gender": ["F"], "age": [24], "occupation": ["technician"]})
    found = read_movielens(parquet(tmp_path / "ml", users=words))
    assert found.users is not None
    assert found.users.to_pylist() == [
        {"user_id": "1", "gender": "female", "age": "24", "occupation": "technician"},
    ]


def test_parquet_tables_that_break_the_layout_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"movies\.parquet has no column genres; it has item_id, title"):
        read_movielens(parquet(tmp_path / "a", movies=pa.table({"item_id": [1], "title": ["X"]})))
    holed = pa.table({"item_id": [1], "title": pa.array([None], pa.string()), "genres": [["Drama"]]})
    with pytest.raises(InputError, match=r"movies\.parquet has nulls in `title`"):
        read_movielens(parquet(tmp_path / "b", movies=holed))
    coded = pa.table({"user_id": [1], "gender": ["F"], "age": [17], "occupation": [10]})
    with pytest.raises(InputError, match=r"user 1 has a code .*age 17"):
        read_movielens(parquet(tmp_path / "c", users=coded))
    (parquet(tmp_path / "d") / "ratings.parquet").write_text("not parquet")
    with pytest.raises(InputError, match=r"ratings\.parquet cannot be read as Parquet"):
        read_movielens(tmp_path / "d")


def test_the_import_writes_the_input_tables_and_counts_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = import_movielens(folder(tmp_path / "ml", DAT), out)
    assert {name: report[name] for name in ("behaviours", "items", "users")} == {
        "behaviours": 3,
        "items": 2,
        "users": 2,
    }
    assert sorted(path.name for path in out.iterdir()) == ["behaviours.parquet", "items.parquet", "users.parquet"]
    assert pq.read_table(out / "items.parquet").equals(read_movielens(tmp_path / "ml").items)
    again = import_movielens(folder(tmp_path / "other", CSV), out)
    assert again["users"] == 0
    assert any("earlier import" in note for note in again["notes"])  # type: ignore[attr-defined]


def test_what_the_import_writes_is_an_input_without_a_fault(tmp_path: Path) -> None:
    import_movielens(folder(tmp_path / "ml", DAT), tmp_path)
    now = datetime(2024, 1, 1, tzinfo=UTC)
    source = SourceConfig(path="behaviours.parquet")
    events = ingest_behaviours(source, tmp_path, [], tmp_path / "new.parquet", tmp_path / "aside.parquet")
    assert (events.accepted, events.rejected) == (3, 0)
    assert pq.read_table(tmp_path / "new.parquet").equals(pq.read_table(tmp_path / "behaviours.parquet"))
    items = ingest_items(SourceConfig(path="items.parquet"), tmp_path, None, now, lambda text: None)
    assert items.versions["attributes"][0].as_py() == '{"genres":["Drama","Film-Noir"],"year":1987}'
    users = ingest_users(SourceConfig(path="users.parquet"), tmp_path, None, now)
    assert (items.report.accepted, users.report.accepted) == (2, 2)


@pytest.mark.skipif(not (SHARED / "data" / "ml-1m").exists(), reason="../shared/data/ml-1m is absent")
def test_all_of_ml_1m_is_read(tmp_path: Path) -> None:
    found = read_movielens(SHARED / "data" / "ml-1m")
    assert found.users is not None
    # Counts of ../shared/data/ml-1m/README.md.
    assert (found.behaviours.num_rows, found.items.num_rows, found.users.num_rows) == (1_000_209, 3_883, 6_040)
    ratings = found.behaviours["value"].value_counts().to_pylist()
    assert {row["values"]: row["counts"] for row in ratings} == {
        1: 56_174,
        2: 107_557,
        3: 261_197,
        4: 348_971,
        5: 226_310,
    }
    assert any("322,429 of 1,000,209" in note and "307" in note for note in found.notes)
    assert found.items["year"].null_count == 0
