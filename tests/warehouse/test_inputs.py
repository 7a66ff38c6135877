import math
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.errors import CorruptWarehouse, InputError, MissingColumn, TooManyRejected, WrongType
from warehouse.inputs import REJECTED, IngestReport, Reason, ingest_behaviours
from warehouse.schemas import BEHAVIOURS
from warehouse.sources import InputsConfig, SourceConfig

HEADER = "user_id,item_id,ts,value,action\n"
JUNE = datetime(2020, 6, 1, 12, tzinfo=UTC)
GOOD = {"user_id": ["u"], "item_id": ["i"], "ts": [JUNE], "value": [1.0], "action": ["click"]}


def ingest(base: Path, run: int = 0, known: Sequence[Path] = (), path: str | None = "*", **given: Any) -> IngestReport:
    out, aside = base / "stored" / f"{run}.parquet", base / "aside" / f"{run}.parquet"
    source = SourceConfig(**({"path": path} | given.pop("source", {})))
    return ingest_behaviours(source, base, known, out, aside, threads=1, **given)


def stored(base: Path, run: int = 0) -> list[tuple[Any, ...]]:
    table = pq.read_table(base / "stored" / f"{run}.parquet")
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def reasons(base: Path, run: int = 0) -> list[tuple[str, dict[str, Any]]]:
    table = pq.read_table(base / "aside" / f"{run}.parquet")
    assert table.schema.equals(REJECTED)
    return [(row["reason"], orjson.loads(row["row"])) for row in table.to_pylist()]


def files_under(base: Path) -> set[Path]:
    return {path for folder in ("stored", "aside") for path in (base / folder).rglob("*")}


def test_rows_stand_in_the_contract_in_order_of_arrival(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text(HEADER + "u3,i,2020-01-01,2.5,view\n")
    (tmp_path / "a.csv").write_text(HEADER + "u2,i,2020-01-03,5,click\nu1,i,2020-01-02,1,click\n")
    report = ingest(tmp_path, path="*.csv")
    assert pq.read_schema(tmp_path / "stored" / "0.parquet").equals(BEHAVIOURS)
    assert [row[0] for row in stored(tmp_path)] == ["u2", "u1", "u3"]
    assert stored(tmp_path)[2] == ("u3", "i", datetime(2020, 1, 1, tzinfo=UTC), 2.5, "view")
    assert (report.read, report.accepted, report.rejected) == (3, 3, 0)
    assert report.file is not None
    assert report.file.rows == 3
    assert report.rejected_file is None
    assert not (tmp_path / "aside").exists()


def test_value_and_action_have_defaults_and_columns_nobody_asked_for_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"who": [7], "item_id": ["i"], "ts": [JUNE], "device": ["tv"]}), tmp_path / "a.parquet")
    report = ingest(tmp_path, path="a.parquet", source={"columns": {"user_id": "who"}})
    assert stored(tmp_path) == [("7", "i", JUNE, 1.0, "interact")]
    assert report.ignored_columns == ("device",)


def test_a_null_or_blank_action_is_the_default(tmp_path: Path) -> None:
    table = pa.table({"user_id": ["a", "b"], "item_id": ["i"] * 2, "ts": [JUNE] * 2, "action": [None, " "]})
    pq.write_table(table, tmp_path / "a.parquet")
    ingest(tmp_path, path="a.parquet")
    assert [row[4] for row in stored(tmp_path)] == ["interact", "interact"]


def test_source_columns_may_bear_any_name(tmp_path: Path) -> None:
    names = {"user_id": "reason", "item_id": 'a "b"', "ts": "select", "value": "row", "action": "source"}
    pq.write_table(pa.table(GOOD).rename_columns(list(names.values())), tmp_path / "it's.parquet")
    ingest(tmp_path, path="it's.parquet", source={"columns": names})
    assert stored(tmp_path) == [("u", "i", JUNE, 1.0, "click")]


@pytest.mark.parametrize(
    ("column", "unit", "expected"),
    [
        (pa.array([datetime(2020, 6, 1, 12)], pa.timestamp("s")), "s", JUNE),
        (pa.array([datetime(2020, 6, 1, 12)], pa.timestamp("ns")), "s", JUNE),
        (pa.array([JUNE], pa.timestamp("ms", "America/New_York")), "s", JUNE),
        (pa.array([JUNE.astimezone(timezone(timedelta(hours=5)))], pa.timestamp("ns", "UTC")), "s", JUNE),
        (pa.array([date(2020, 6, 1)]), "s", JUNE.replace(hour=0)),
        (pa.array([1591012800], pa.int32()), "s", JUNE),
        (pa.array([1591012800], pa.uint64()), "s", JUNE),
        (pa.array([1591012800123], pa.int64()), "ms", JUNE + timedelta(milliseconds=123)),
        (pa.array([1591012800123456], pa.int64()), "us", JUNE + timedelta(microseconds=123456)),
        (pa.array([-1], pa.int8()), "s", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (pa.array(["2020-06-01 12:00:00"]), "s", JUNE),
        (pa.array(["2020-06-01T14:00:00+02:00"]), "s", JUNE),
        (pa.array(["2020-06-01T12:00:00Z"]), "s", JUNE),
        (pa.array([" 1591012800 "]), "s", JUNE),
        (pa.array(["1591012800000"]), "ms", JUNE),
    ],
)
def test_times_of_every_kind_are_the_same_instant_in_utc(
    tmp_path: Path, column: pa.Array, unit: str, expected: datetime
) -> None:
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"], "ts": column}), tmp_path / "a.parquet")
    ingest(tmp_path, path="a.parquet", source={"timestamp_unit": unit})
    assert stored(tmp_path)[0][2] == expected


@pytest.mark.parametrize(
    ("name", "column", "found"),
    [
        ("user_id", pa.array([1.5]), "DOUBLE"),
        ("item_id", pa.array([True]), "BOOLEAN"),
        ("item_id", pa.array([["i"]]), "VARCHAR[]"),
        ("ts", pa.array([1591012800.0]), "DOUBLE"),
        ("ts", pa.array([True]), "BOOLEAN"),
        ("value", pa.array(["5"]), "VARCHAR"),
        ("value", pa.array([JUNE]), "TIMESTAMP"),
        ("action", pa.array([3]), "BIGINT"),
        ("ts", pa.array(["yesterday"]), "'yesterday'"),
    ],
)
def test_a_column_of_the_wrong_type_is_named_and_nothing_is_written(
    tmp_path: Path, name: str, column: pa.Array, found: str
) -> None:
    pq.write_table(pa.table(GOOD | {name: column}), tmp_path / "a.parquet")
    with pytest.raises(WrongType) as failure:
        ingest(tmp_path, path="a.parquet")
    assert failure.value.column == name
    assert found in str(failure.value)
    assert not files_under(tmp_path)


def test_a_csv_column_without_one_readable_value_is_of_the_wrong_type(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "u,i,2020-01-01,five,x\nv,i,2020-01-01,four,x\n")
    with pytest.raises(WrongType, match="'five'"):
        ingest(tmp_path, path="a.csv")


@pytest.mark.parametrize("name", ["user_id", "item_id", "ts"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table(GOOD).drop_columns([name]), tmp_path / "a.parquet")
    with pytest.raises(MissingColumn, match=f"no column `{name}`; it has .*action"):
        ingest(tmp_path, path="a.parquet")
    assert not files_under(tmp_path)


def test_a_mapping_to_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table(GOOD), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="maps `value` to 'stars'"):
        ingest(tmp_path, path="a.parquet", source={"columns": {"value": "stars"}})


def test_rows_that_break_the_contract_are_kept_with_their_reason(tmp_path: Path) -> None:
    good = "".join(f"u{n},i,2020-01-01,1,x\n" for n in range(4))
    bad = (
        ",i,2020-01-01,1,x\n"
        "u,  ,2020-01-01,1,x\n"
        "u,i,,1,x\n"
        "u,i,2020-02-30,1,x\n"
        "u,i,infinity,1,x\n"
        "u,i,1591012800000000,1,x\n"
        "u,i,9999999999999999999999,1,x\n"
        "u,i,1600-01-01,1,x\n"
        "u,i,2020-01-01,nan,x\n"
        "u,i,2020-01-01,inf,x\n"
        "u,i,2020-01-01,1e39,x\n"
        "u,i,2020-01-01,,x\n"
        "u,i,2020-01-01\n"
        "u,i,2020-01-01,1,x,y\n"
    )
    (tmp_path / "a.csv").write_text(HEADER + good + bad)
    report = ingest(tmp_path, path="a.csv", max_rejected_fraction=1)
    assert (report.read, report.accepted, report.rejected) == (18, 4, 14)
    expected = {
        Reason.MISSING_ID: 2,
        Reason.BAD_TIMESTAMP: 4,
        Reason.TIMESTAMP_OUT_OF_RANGE: 2,
        Reason.BAD_VALUE: 4,
        Reason.UNPARSEABLE_ROW: 2,
    }
    assert report.reasons == {reason.value: count for reason, count in expected.items()}
    found = reasons(tmp_path)
    assert [reason for reason, _ in found].count("bad_value") == 4
    assert (
        "bad_timestamp",
        dict(zip(HEADER.strip().split(","), ["u", "i", "2020-02-30", "1", "x"], strict=True)),
    ) in found
    [short] = [row for reason, row in found if reason == "unparseable_row" and row["text"] == "u,i,2020-01-01"]
    assert short["line"] == 18


def test_typed_rows_are_rejected_for_nulls_and_for_values_that_are_no_number(tmp_path: Path) -> None:
    values = [1.0, None, math.nan, -math.inf, 1e300]
    columns = {"user_id": ["u"] * 5, "item_id": ["i"] * 5, "ts": [JUNE] * 4 + [None], "value": values}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    report = ingest(tmp_path, path="a.parquet", max_rejected_fraction=1)
    assert report.reasons == {"bad_timestamp": 1, "bad_value": 3}
    assert [row["value"] for _, row in reasons(tmp_path)] == [None, "nan", "-inf", "1e+300"]
    assert all(reason in set(Reason) for reason, _ in reasons(tmp_path))


def test_too_many_rejected_rows_leave_no_file_behind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "u,i,2020-01-01,1,x\n" * 90 + "u,i,2020-01-01,?,x\n" * 10)
    with pytest.raises(TooManyRejected, match=r"10 of 100 rows .*bad_value: 10"):
        ingest(tmp_path, path="a.csv", max_rejected_fraction=0.0999)
    assert not files_under(tmp_path)
    assert ingest(tmp_path, path="a.csv", max_rejected_fraction=0.1).rejected == 10


def test_events_that_were_stored_before_are_known_and_not_written_again(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "u,i,2020-01-01,1,x\nu,i,2020-01-01,1,x\n")
    first = ingest(tmp_path, path="a.csv")
    assert (first.accepted, first.duplicates, first.known) == (1, 1, 0)
    known = [tmp_path / "stored" / "0.parquet"]
    with (tmp_path / "a.csv").open("a") as stream:
        stream.write("u,i,2020-01-01,2,x\nu,i,2020-01-01,1,y\nu,i,2020-01-01T00:00:00.000001,1,x\n")
    second = ingest(tmp_path, 1, known, path="a.csv")
    assert (second.read, second.accepted, second.duplicates, second.known) == (5, 3, 1, 1)
    again = ingest(tmp_path, 2, [*known, tmp_path / "stored" / "1.parquet"], path="a.csv")
    assert (again.accepted, again.known, again.file) == (0, 4, None)
    assert not (tmp_path / "stored" / "2.parquet").exists()


def test_files_read_before_are_skipped_by_what_the_report_says(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "u,i,2020-01-01,1,x\n")
    first = ingest(tmp_path, path="*.csv")
    assert ingest(tmp_path, 1, path="*.csv", skip=first.sources).read == 0
    (tmp_path / "b.csv").write_text(HEADER + "v,i,2020-01-01,1,x\n")
    second = ingest(tmp_path, 1, path="*.csv", skip=first.sources)
    assert (second.read, [Path(file.path).name for file in second.sources]) == (1, ["b.csv"])
    assert stored(tmp_path, 1)[0][0] == "v"


def test_a_damaged_stored_file_is_not_taken_for_a_bad_input(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "u,i,2020-01-01,1,x\n")
    (tmp_path / "known.parquet").write_text("damaged")
    with pytest.raises(CorruptWarehouse, match=r"known\.parquet"):
        ingest(tmp_path, known=[tmp_path / "known.parquet"], path="a.csv")
    assert not files_under(tmp_path)


def test_a_bad_file_among_good_ones_stores_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "u,i,2020-01-01,1,x\n")
    (tmp_path / "b.csv").write_text(HEADER + 'v,"i,2020-01-01,1,x\n' + "w,i,2020-01-01,1,x\n" * 9)
    with pytest.raises(InputError, match=r"b\.csv, line 2"):
        ingest(tmp_path, path="*.csv")
    assert not files_under(tmp_path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "u,i,2020-01-01,1,x\n")
    from warehouse import inputs

    def and_meanwhile(con: Any, part: Any, erased: Any) -> list[str]:
        (tmp_path / "a.csv").write_text(HEADER + "u,i,2020-01-01,1,x\nv,i,2020-01-01,1,x\n")
        return []

    monkeypatch.setattr(inputs, "unparseable", and_meanwhile)
    with pytest.raises(InputError, match="changed while"):
        ingest(tmp_path, path="a.csv")
    assert not files_under(tmp_path)


def test_a_header_without_rows_is_an_empty_input(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER)
    assert ingest(tmp_path, path="a.csv").read == 0
    assert not files_under(tmp_path)


def test_behaviours_come_from_a_table_and_from_a_query(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as con:
        con.execute("CREATE TYPE verb AS ENUM ('click', 'view')")
        con.execute(
            "CREATE TABLE events AS SELECT uuid() AS user_id, 12::DECIMAL(18, 0) AS item_id, now() AS ts, "
            "2.5::DECIMAL(4, 2) AS value, 'view'::verb AS action FROM range(3)"
        )
    place = {"path": None, "database": "shop.duckdb"}
    assert ingest(tmp_path, source=place | {"table": "events"}).accepted == 3
    assert {row[1:2] + row[3:] for row in stored(tmp_path)} == {("12", 2.5, "view")}
    query = "SELECT user_id, 'i' AS item_id, ts FROM events LIMIT 2"
    assert ingest(tmp_path, 1, source=place | {"query": query}).accepted == 2
    with pytest.raises(MissingColumn, match="`query` on"):
        ingest(tmp_path, 2, source=place | {"query": "SELECT user_id FROM events"})


EVENT = st.tuples(
    st.sampled_from(["u", "v", "ü 0"]),
    st.sampled_from(["i", "0"]),
    st.integers(0, 2),
    st.sampled_from([0.1, 1.0, -0.0, 0.0]),
    st.sampled_from(["interact", "it's"]),
)


@settings(max_examples=15, deadline=None)
@given(
    runs=st.lists(
        st.lists(st.tuples(st.lists(EVENT, max_size=8), st.booleans()), min_size=1, max_size=3), min_size=1, max_size=3
    ),
    data=st.data(),
)
def test_however_a_stream_is_cut_the_accepted_events_are_the_set_of_them(
    runs: list[list[tuple[list[tuple[Any, ...]], bool]]], data: st.DataObject
) -> None:
    # Every run reads the files of a folder of its own; later runs repeat some earlier events, in any order.
    names = BEHAVIOURS.names
    oracle: set[tuple[Any, ...]] = set()
    earlier: list[tuple[Any, ...]] = []
    known: list[Path] = []
    with TemporaryDirectory() as folder:
        base = Path(folder)
        for run, pieces in enumerate(runs):
            read: list[tuple[Any, ...]] = []
            (base / f"run{run}").mkdir()
            for place, (events, as_csv) in enumerate(pieces):
                events = data.draw(st.permutations(events + earlier[: place * 2]))
                read += events
                columns = {name: [event[index] for event in events] for index, name in enumerate(names)}
                schema = BEHAVIOURS.set(2, pa.field("ts", pa.int64()))
                table = pa.table(columns, schema=schema)
                if as_csv:
                    rows = "".join(",".join(map(str, row.values())) + "\n" for row in table.to_pylist())
                    (base / f"run{run}" / f"{place}.csv").write_text(HEADER + rows)
                else:
                    pq.write_table(table, base / f"run{run}" / f"{place}.parquet")
            report = ingest(base, run, known, path=f"run{run}/*")
            new = {as_stored(event) for event in read} - oracle
            oracle |= new
            earlier += read
            assert (report.read, report.accepted) == (len(read), len(new))
            assert report.read == report.accepted + report.duplicates + report.known + report.rejected
            assert (report.file is not None) == bool(new)
            if new:
                known.append(base / "stored" / f"{run}.parquet")
        found = [row for path in known for row in stored(base, int(path.stem))]
    assert len(found) == len(oracle)
    assert set(found) == oracle


def as_stored(event: tuple[Any, ...]) -> tuple[Any, ...]:
    user, item, seconds, value, action = event
    return user, item, datetime.fromtimestamp(seconds, UTC), pa.scalar(value, pa.float32()).as_py(), action


def test_too_many_rejected_rows_show_the_first_of_each_reason(tmp_path: Path) -> None:
    lines = ["u1,i1,1700000000000,1,click", "u2,i2,1700000000001,1,click", ",i3,1700000000,1,click"]
    (tmp_path / "a.csv").write_text(HEADER + "\n".join([*lines, f"u4,i4,1700000000,{'9' * 200}x,click"]) + "\n")
    with pytest.raises(TooManyRejected) as caught:
        ingest(tmp_path, path="a.csv")
    message = str(caught.value)
    assert "timestamp_out_of_range: 2, first ts = '1700000000000', user_id = 'u1', item_id = 'i1'" in message
    assert "missing_id: 1, first user_id = None, item_id = 'i3'" in message
    assert f"bad_value: 1, first value = '{'9' * 71}...;" in message.replace(").", ";")
    assert "`inputs.behaviours.timestamp_unit` = 's'" in message


def test_numbers_that_are_not_finite_are_not_called_text(tmp_path: Path) -> None:
    table = pa.table({**GOOD, "value": [math.nan]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(TooManyRejected, match=r"bad_value: 1, first value = 'nan'"):
        ingest(tmp_path, path="a.parquet")


def test_a_csv_file_without_a_header_is_told_what_its_first_line_is_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u0,i0,2024-01-01\nu1,i1,2024-01-02\n")
    with pytest.raises(MissingColumn, match="first line of a CSV file must hold the column names"):
        ingest(tmp_path, path="a.csv")


def test_events_after_the_latest_moment_are_kept_aside(tmp_path: Path) -> None:
    moments = [JUNE, JUNE + timedelta(microseconds=1), datetime(2100, 1, 1, tzinfo=UTC)]
    table = pa.table({"user_id": ["u"] * 3, "item_id": ["i"] * 3, "ts": moments})
    pq.write_table(table, tmp_path / "a.parquet")
    report = ingest(tmp_path, path="a.parquet", max_rejected_fraction=1, latest=JUNE)
    assert (report.accepted, report.reasons) == (1, {"timestamp_in_future": 2})
    assert [row[2] for row in stored(tmp_path)] == [JUNE]
    assert ingest(tmp_path, 1, path="a.parquet").accepted == 3
    with pytest.raises(TooManyRejected, match=r"timestamp_in_future: 2, first ts = '2020-06-01 12:00:00.000001"):
        ingest(tmp_path, 2, path="a.parquet", latest=JUNE)


def test_the_latest_event_follows_the_clock_and_can_be_switched_off() -> None:
    source = SourceConfig(path="x.csv")
    assert InputsConfig(behaviours=source, items=source).latest_event(JUNE) == JUNE + timedelta(days=1)
    unlimited = InputsConfig(behaviours=source, items=source, max_future_days=None)
    assert unlimited.latest_event(JUNE) is None


def test_a_database_that_another_process_holds_is_said_to_be_held(tmp_path: Path) -> None:
    code = (
        "import duckdb, sys; con = duckdb.connect(sys.argv[1]); con.sql('CREATE TABLE e (a INT)'); "
        "print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "shop.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match=r"shop\.duckdb is held open for writing by another process"):
            ingest(tmp_path, path=None, source={"database": "shop.duckdb", "table": "e"})
        other.kill()
