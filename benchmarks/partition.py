"""Events/s and peak memory of the Beam pipeline that makes partitions, against DuckDB in the same run.

    python benchmarks/partition.py [--json] [--events N] [--ml1m FOLDER] [--repeats N]

All go from Parquet to Parquet. There are two rivals, one SQL statement each (below): the plain window query gives every
event its partition's number; the fuller one makes the lists. Neither makes what a next run needs (open partitions,
digests); the pipeline does. Each contestant runs in a process of its own, in turns (A B C A B C); rates are
medians, memory is the highest peak.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augment.sealing import PartitionConfig
from warehouse.schemas import BEHAVIOURS

ML1M = Path(__file__).parents[2] / "shared" / "data" / "ml-1m"
CONFIG = PartitionConfig()

NUMBERED = """
    SELECT *, CASE WHEN n < 10 THEN 0 WHEN n < 30 THEN 1 ELSE 2 + (n - 30) // 50 END AS partition_no
    FROM (SELECT user_id, item_id, ts, value,
                 row_number() OVER (PARTITION BY user_id ORDER BY ts, item_id) - 1 AS n
          FROM read_parquet('{source}/*.parquet'))
"""
WINDOW = "COPY (SELECT user_id, item_id, ts, value, partition_no FROM (" + NUMBERED + ")) TO '{out}/rows.parquet'"
SAME_OUTPUT = (
    "COPY (SELECT user_id, partition_no, min(ts) AS opened_at, max(ts) AS sealed_at, "
    "list(item_id ORDER BY n) AS items, list(value ORDER BY n) AS values FROM ("
    + NUMBERED
    + ") GROUP BY user_id, partition_no HAVING count(*) = CASE partition_no WHEN 0 THEN 10 WHEN 1 THEN 20 ELSE 50 END"
    ") TO '{out}/partitions.parquet'"
)


def pipeline(source: Path, out: Path) -> int:
    """The number of partitions sealed."""
    # Beam takes seconds to import, and the rivals' memory should not hold it.
    from augment.partition import partition_events

    return partition_events(sorted(source.glob("*.parquet")), [], out, "bench", CONFIG).sealed


def window_query(source: Path, out: Path) -> int:
    """0: partition numbers stand beside the events, and nothing is sealed."""
    duckdb.connect().execute(WINDOW.format(source=source, out=out))
    return 0


def same_output_query(source: Path, out: Path) -> int:
    """The number of partitions sealed."""
    duckdb.connect().execute(SAME_OUTPUT.format(source=source, out=out))
    return int(pq.read_metadata(out / "partitions.parquet").num_rows)


CONTESTANTS: dict[str, Callable[[Path, Path], int]] = {
    "pipeline": pipeline,
    "duckdb": window_query,
    "duckdb_same_output": same_output_query,
}


def synthesise(folder: Path, events: int) -> None:
    """Logs as they come in, file by file in order of time: `events` over three years of 300,000 users."""
    files = max(1, round(events / 2_000_000))
    log = Log(users=300_000, items=100_000)
    for number in range(files):
        size = events * (number + 1) // files - events * number // files
        pq.write_table(log.piece(number / files, (number + 1) / files, size), folder / f"{number:03d}.parquet")


class Log:
    """Three years of made-up behaviour, whole seconds, piece by piece.

    How much a user does is log-normal (sigma 1.3: the busiest do thousands of things); items follow Zipf's law.
    """

    def __init__(self, users: int, items: int) -> None:
        self._rng = np.random.default_rng(7)
        self._activity = np.cumsum(self._rng.lognormal(0.0, 1.3, users))
        self._popularity = np.cumsum(1 / np.arange(1, items + 1) ** 0.9)
        self._user_ids = pa.array([f"u{n:07d}" for n in range(users)])
        self._item_ids = pa.array([f"item{n:06d}" for n in range(items)])

    def piece(self, begin: float, end: float, size: int) -> pa.Table:
        """`size` behaviours of the part [begin, end) of the three years, in order of time."""
        rng, years = self._rng, 3 * 365 * 86_400
        seconds = np.sort(rng.integers(int(years * begin), int(years * end), size)) + 1_500_000_000
        user = np.searchsorted(self._activity, rng.random(size) * self._activity[-1])
        item = np.searchsorted(self._popularity, rng.random(size) * self._popularity[-1])
        columns = [
            self._user_ids.take(pa.array(user)),
            self._item_ids.take(pa.array(item)),
            pa.array(seconds * 1_000_000).cast(BEHAVIOURS.field("ts").type),
            pa.array(rng.integers(1, 6, size).astype(np.float32)),
            pa.repeat("interact", size),
        ]
        return pa.table(columns, schema=BEHAVIOURS)


def convert(ml1m: Path, folder: Path) -> None:
    """MovieLens-1M's ratings as behaviours, in the order of the file."""
    ratings = pq.read_table(ml1m / "ratings.parquet")
    columns = [
        ratings["user_id"].cast(pa.string()),
        ratings["item_id"].cast(pa.string()),
        ratings["timestamp"].cast(pa.timestamp("s", tz="UTC")).cast(BEHAVIOURS.field("ts").type),
        ratings["rating"].cast(pa.float32()),
        pa.repeat("interact", len(ratings)),
    ]
    pq.write_table(pa.table(columns, schema=BEHAVIOURS), folder / "ratings.parquet")


def compete(source: Path, scratch: Path, repeats: int) -> dict[str, float]:
    """The figures for the events in `source`."""
    events = sum(pq.read_metadata(path).num_rows for path in source.glob("*.parquet"))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(repeats):
        for name in CONTESTANTS:
            out = scratch / name
            out.mkdir()
            child = [sys.executable, __file__, "--child", name, str(source), str(out)]
            done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(out)
    sealed = {run["sealed"] for name in ("pipeline", "duckdb_same_output") for run in runs[name]}
    if len(sealed) > 1:
        raise SystemExit(f"The pipeline and DuckDB sealed different numbers of partitions: {sorted(sealed)}")
    rate = {name: events / median(run["seconds"] for run in done) for name, done in runs.items()}
    peak = {name: max(run["peak_mb"] for run in done) for name, done in runs.items()}
    return {
        "events": events,
        "partitions": sealed.pop(),
        "events_per_s": round(rate["pipeline"]),
        "duckdb_events_per_s": round(rate["duckdb"]),
        "ratio": round(rate["pipeline"] / rate["duckdb"], 3),
        "duckdb_same_output_events_per_s": round(rate["duckdb_same_output"]),
        "ratio_same_output": round(rate["pipeline"] / rate["duckdb_same_output"], 3),
        "peak_mb": round(peak["pipeline"]),
        "duckdb_peak_mb": round(peak["duckdb"]),
        "duckdb_same_output_peak_mb": round(peak["duckdb_same_output"]),
    }


def run_child(name: str, source: Path, out: Path) -> None:
    """Print one contestant's seconds, imports aside, and the highest resident memory of this process."""
    if name == "pipeline":
        import augment.partition  # noqa: F401
    began = time.perf_counter()
    sealed = CONTESTANTS[name](source, out)
    seconds = time.perf_counter() - began
    # Not getrusage: its peak would include the parent's, from before this program was loaded.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"seconds": seconds, "sealed": sealed, "peak_mb": int(status["VmHWM"].split()[0]) / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--events", type=int, default=20_000_000, help="synthetic events (default: 20 million)")
    parser.add_argument("--ml1m", type=Path, default=ML1M, help="folder with MovieLens-1M's ratings.parquet")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("NAME", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        name, source, out = given.child
        return run_child(name, Path(source), Path(out))

    made: dict[str, Callable[[Path], None]] = {"synthetic": lambda folder: synthesise(folder, given.events)}
    if (given.ml1m / "ratings.parquet").exists():
        made = {"ml-1m": lambda folder: convert(given.ml1m, folder), **made}
    else:
        print(f"MovieLens-1M is left out: there is no {given.ml1m / 'ratings.parquet'}.", file=sys.stderr)
    found: dict[str, object] = {"cores": os.cpu_count(), "duckdb": duckdb.__version__}
    for name, make in made.items():
        with tempfile.TemporaryDirectory(prefix="lorestream-partition-") as scratch:
            source = Path(scratch, "events")
            source.mkdir()
            make(source)
            figures = compete(source, Path(scratch), given.repeats)
        found[name] = figures
        if not given.json:
            print(name)
            for key, value in figures.items():
                print(f"  {key:32} {value:>14,}")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
