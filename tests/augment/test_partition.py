"""The Beam pipeline from files to files: equal to the plain loop, incremental, and in other processes, too."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from augment.partition import PartitionReport, partition_events
from augment.sealing import PartitionConfig
from tests.augment.partition_oracle import DAY, Oracle, Row, behaviours
from warehouse.errors import ConfigError, CorruptWarehouse, InputError, MissingColumn, WrongType
from warehouse.keys import bucket_of
from warehouse.schemas import OPEN_PARTITIONS, PARTITIONS

HOUR = DAY // 24
CONFIG = PartitionConfig(sizes=(3, 5), gap_days=1.0, buckets=4)
TWO_PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")

# Seven hours apart, now and then with a pause of days; every third event ties with the one before.
FIRST = [(f"u{n % 11}", f"i{n * 7 % 23}", (n // 3 * 7 + n // 40 * 30) * HOUR, n % 5, "interact") for n in range(150)]
# Late ones and new ones, of three users only, one of them unknown so far.
SECOND = [(user, f"late{n}", (n * 13 - 20) * HOUR, 1.0, "buy") for n in range(14) for user in ("u3", "u4", "new")]


def write_events(path: Path, rows: list[Row], row_group_size: int = 1 << 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(behaviours(rows), path, row_group_size=row_group_size)
    return path


def run_files(
    root: Path, run: str, rows: list[Row], still_open: tuple[Path, ...] = (), config: PartitionConfig = CONFIG
) -> PartitionReport:
    """Partition `rows`, spread over two files of several row groups."""
    files = [write_events(root / "in" / f"{run}-{part}.parquet", rows[part::2], row_group_size=20) for part in (0, 1)]
    return partition_events(files, still_open, root, run, config)


def read(paths: tuple[Path, ...], schema: pa.Schema) -> pa.Table:
    keys = [(name, "ascending") for name in ("user_id", "partition_no")]
    return pa.concat_tables([schema.empty_table(), *(pq.read_table(path) for path in paths)]).sort_by(keys)


def check(report: PartitionReport, oracle: Oracle, rows: list[Row], still_open: tuple[Path, ...]) -> None:
    """The files hold what the plain loop makes of `rows`, each in its bucket, and the report says so."""
    assert read(report.partition_files, PARTITIONS).equals(oracle.run(rows))
    assert read(still_open, OPEN_PARTITIONS).equals(oracle.open_partitions())
    for path in (*report.partition_files, *report.open_files):
        table = pq.read_table(path)
        assert {f"b{bucket_of(user, 4):02d}" for user in table["user_id"].to_pylist()} == {path.stem.split("-")[-1]}
        assert table.schema.equals(PARTITIONS if path in report.partition_files else OPEN_PARTITIONS)
    assert (report.events, report.users) == (len(rows), len({row[0] for row in rows}))
    assert report.sealed == read(report.partition_files, PARTITIONS).num_rows


@pytest.mark.beam
def test_two_runs_equal_the_plain_loop_and_the_second_reads_the_open_tail_only(tmp_path: Path) -> None:
    oracle = Oracle(CONFIG)
    first = run_files(tmp_path, "r1", FIRST)
    check(first, oracle, FIRST, first.open_files)
    assert first.superseded_files == ()
    assert len(first.open_files) == 4

    # What the first run read and sealed is gone, and so are open partitions of buckets without a new event.
    touched = {bucket_of(row[0], 4) for row in SECOND}
    resting = tuple(path for path in first.open_files if int(path.stem[-2:]) not in touched)
    assert resting
    kept = {path: path.read_bytes() for path in resting}
    for path in (*(tmp_path / "in").iterdir(), *first.partition_files):
        path.write_bytes(b"poison")
    for path in resting:
        footer = pq.read_schema(path)
        pq.write_table(OPEN_PARTITIONS.empty_table().replace_schema_metadata(footer.metadata), path)

    second = run_files(tmp_path, "r2", SECOND, first.open_files)
    assert set(second.superseded_files) == set(first.open_files) - set(resting)
    assert len(second.open_files) == len(touched)
    for path, content in kept.items():
        path.write_bytes(content)
    check(second, oracle, SECOND, (*resting, *second.open_files))
    leftovers = [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert leftovers == []


@pytest.mark.beam
def test_worker_processes_share_nothing_but_files(tmp_path: Path) -> None:
    oracle, config = Oracle(CONFIG), CONFIG.model_copy(update={"runner_options": TWO_PROCESSES})
    oracle.run(FIRST)
    first = run_files(tmp_path, "r1", FIRST)
    second = run_files(tmp_path, "r2", SECOND, first.open_files, config)
    rest = set(first.open_files) - set(second.superseded_files)
    check(second, oracle, SECOND, (*rest, *second.open_files))


@pytest.mark.beam
def test_a_run_without_a_new_event_writes_nothing(tmp_path: Path) -> None:
    empty = write_events(tmp_path / "in" / "empty.parquet", [])
    report = partition_events([empty], [], tmp_path, "r1", CONFIG)
    assert (report.events, report.sealed, report.open_files) == (0, 0, ())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.beam
def test_damage_that_only_a_worker_meets_names_the_file_and_leaves_no_table(tmp_path: Path) -> None:
    file = write_events(tmp_path / "in" / "r1.parquet", FIRST)
    content = bytearray(file.read_bytes())
    content[4:400] = b"\xff" * 396
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"r1\.parquet cannot be read"):
        partition_events([file], [], tmp_path, "r1", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"runner": "NoSuchRunner"}, "'NoSuchRunner'"),
        ({"runner": "no.such.Runner"}, "'no.such.Runner'"),
        ({"runner": "json.Runner"}, "'json.Runner'"),
        ({"runner_options": ("--direct_running_mode=telepathy",)}, "telepathy"),
        ({"runner_options": ("--direct_num_workers=two",)}, "two"),
        ({"runner_options": ("--workers=2",)}, "--workers=2"),
        ({"runner_options": ("--runner=FlinkRunner",)}, "FlinkRunner"),
    ],
)
def test_a_runner_or_option_that_beam_cannot_use_is_named(
    values: dict[str, object], shown: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        partition_events([], [], tmp_path, "r1", PartitionConfig(**values))
    assert shown in str(caught.value)


def test_the_job_server_of_a_portable_runner_judges_flags_of_its_own(tmp_path: Path) -> None:
    config = PartitionConfig(runner="FlinkRunner", runner_options=("--flink_master=host:8081", "--retained=7"))
    assert partition_events([], [], tmp_path, "r1", config).events == 0


def test_events_that_break_the_contract_are_named(tmp_path: Path) -> None:
    good, bad = behaviours(FIRST), tmp_path / "bad.parquet"
    pq.write_table(good.drop_columns("value"), bad)
    with pytest.raises(MissingColumn, match="`value`"):
        partition_events([bad], [], tmp_path, "r1", CONFIG)
    pq.write_table(good.set_column(2, "ts", good["ts"].cast(pa.timestamp("us"))), bad)
    with pytest.raises(WrongType, match=r"behaviours\.ts"):
        partition_events([bad], [], tmp_path, "r1", CONFIG)
    bad.write_bytes(b"not Parquet")
    with pytest.raises(InputError, match=r"bad\.parquet"):
        partition_events([bad], [], tmp_path, "r1", CONFIG)


def test_open_partitions_that_do_not_fit_are_named(tmp_path: Path) -> None:
    def written(name: str, buckets: bytes = b"4") -> Path:
        pq.write_table(
            OPEN_PARTITIONS.empty_table().replace_schema_metadata({b"lorestream.buckets": buckets}), tmp_path / name
        )
        return tmp_path / name

    good = written("r1-b03.parquet")
    for paths, shown in [
        ([written("r1.parquet")], "<run>-bNN"),
        ([good, written("r2-b03.parquet")], "Bucket 3 has two"),
        ([tmp_path / "r1-b01.parquet"], "r1-b01"),
    ]:
        with pytest.raises(CorruptWarehouse, match=shown):
            partition_events([], paths, tmp_path, "r1", CONFIG)
    with pytest.raises(ConfigError, match=r"`buckets` is 4, but .* into 64"):
        partition_events([], [written("r1-b02.parquet", b"64")], tmp_path, "r1", CONFIG)
