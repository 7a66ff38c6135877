"""The warehouse at size: as-of join, publication, reading and incremental publication, with the peak memory of each.

    python benchmarks/at_size.py [--json] [--quick] [--parts join publication night] [--repeats N]

join          10 million impressions on 2 million feature rows of 200,000 users, Parquet to an Arrow table in memory,
              against one bare DuckDB ASOF statement over the same files, in turns; both must find the same vectors
publication   publish: 10 million user vectors of 32 numbers, in pieces, from memory to a snapshot;
              read: their ids and vectors as one Arrow table; add: 1 % new rows on top
night         the publishing stage of a run over the vectors (384 numbers) of 400,000 texts about 200,000 users: of
              everything, and after a night in which 1 % of the users got one text more

Each step runs in a process of its own, so that peaks are its own; times leave out imports and the making of data, and
are medians where a step is repeated. `--quick` takes a twentieth of everything.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from warehouse.fitness import ChecksConfig
from warehouse.manifest import publish
from warehouse.reader import open as open_warehouse
from warehouse.schemas import FEATURES, KNOWLEDGE, REQUESTS, TIMESTAMP, embeddings_schema
from warehouse.store import write_table

DIM = 32
TEXT_DIM = 384
PIECE_ROWS = 200_000
START = datetime(2024, 1, 1, tzinfo=UTC)
YEAR_US = 365 * 86_400 * 1_000_000

BARE = """
    SELECT i.*, f.augment FROM read_parquet('{impressions}') AS i
    ASOF LEFT JOIN read_parquet('{features}') AS f ON i.user_id = f.user_id AND i.ts > f.valid_from
"""


def hex_keys(rng: np.random.Generator, rows: int) -> pa.Array:
    """Random digests of 32 hex digits."""
    text = pa.py_buffer(rng.bytes(16 * rows).hex().encode())
    offsets = pa.py_buffer(np.arange(0, 32 * rows + 1, 32, dtype=np.int32))
    return pa.StringArray.from_buffers(rows, offsets, text)


def user_ids(numbers: np.ndarray) -> pa.Array:
    """Ids `u00000042`, equally long as ids of one system mostly are."""
    return pc.binary_join_element_wise("u", pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 8, "0"), "")


def moments(rng: np.random.Generator, rows: int) -> pa.Array:
    start = int(START.timestamp()) * 1_000_000
    return pa.array(start + rng.integers(0, YEAR_US, rows)).cast(TIMESTAMP)


def user_rows(rng: np.random.Generator, users: np.ndarray) -> pa.Table:
    """A feature row for each element of `users`, with distinct vectors and keys as a run would make them."""
    rows = len(users)
    values = pa.array(rng.standard_normal(rows * DIM, dtype=np.float32))
    constants = {
        "rung": "own",
        "status": "ok",
        "model": "Qwen/Qwen3-1.7B@70d244cc",
        "prompt_version": "a3f1c2d49e5b60718293a4b5c6d7e8f9",
        "encoder_id": "6e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b",
        "adapter_version": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
    }
    columns = {
        "user_id": user_ids(users),
        "partition_no": pa.array(np.zeros(rows, np.int32)),
        "valid_from": moments(rng, rows),
        "created_at": pa.repeat(pa.scalar(START + timedelta(days=366), TIMESTAMP), rows),
        "augment": pa.ListArray.from_arrays(pa.array(np.arange(0, rows * DIM + 1, DIM, dtype=np.int32)), values),
        "augment_dim": pa.array(np.full(rows, DIM, np.int32)),
        **{name: pa.repeat(pa.scalar(value), rows) for name, value in constants.items()},
        **{name: hex_keys(rng, rows) for name in ("request_key", "source_digest", "texts_digest")},
    }
    schema = FEATURES["user_features"]
    return pa.table([columns[name] for name in schema.names if name != "snapshot_id"], schema.names[:-1])


class Watch:
    """Seconds and seconds of CPU since it was made, less those that making data took."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def without(self, pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The pieces, their making not counted."""
        while True:
            wall, cpu = time.perf_counter(), time.process_time()
            piece = next(pieces, None)
            self._wall += time.perf_counter() - wall
            self._cpu += time.process_time() - cpu
            if piece is None:
                return
            yield piece

    def read(self) -> dict[str, float]:
        """The times, and the process's highest resident memory so far."""
        # Not getrusage: its peak would include the parent's, from before this program was loaded.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        times = {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}
        return {**times, "peak_mb": int(status["VmHWM"].split()[0]) / 1024}


def add_rows(folder: Path, first: int, rows: int) -> dict[str, float]:
    """Publish rows of `rows` users from number `first` on."""
    rng = np.random.default_rng(first)
    starts = range(first, first + rows, PIECE_ROWS)
    made = (user_rows(rng, np.arange(lo, min(lo + PIECE_ROWS, first + rows))) for lo in starts)
    watch = Watch()
    pieces = {"user_features": watch.without(made)}
    publish(folder / "publish", pieces, replace=False, now=datetime.now(UTC), lineage={}, checks=ChecksConfig())
    return watch.read()


def make_join(folder: Path, scale: float) -> None:
    """A warehouse with ten rows per user in order of users, and impressions in order of time."""
    rng = np.random.default_rng(7)
    users, impressions = int(200_000 * scale), int(10_000_000 * scale)
    step = PIECE_ROWS // 10
    pieces = (user_rows(rng, np.repeat(np.arange(lo, min(lo + step, users)), 10)) for lo in range(0, users, step))
    publish(folder / "join", {"user_features": pieces}, replace=False, now=datetime.now(UTC), lineage={})
    schema = pa.schema([("user_id", pa.string()), ("ts", TIMESTAMP)])
    with pq.ParquetWriter(folder / "impressions.parquet", schema) as out:
        for lo in range(0, impressions, 1_000_000):
            rows = min(1_000_000, impressions - lo)
            # One user in twenty has no row.
            shown = {"user_id": user_ids(rng.integers(0, users * 21 // 20, rows)), "ts": moments(rng, rows)}
            out.write_table(pa.table(shown).sort_by("ts"))


def checksum(joined: pa.Table, column: str) -> list[float]:
    """How many rows have a vector, and a sum of all vectors' numbers weighted by place and by the row's time."""
    found, total = 0, 0.0
    for lo in range(0, len(joined), 1_000_000):
        part = joined.slice(lo, 1_000_000)
        part = part.filter(part[column].is_valid())
        vectors = pc.list_flatten(part[column]).to_numpy().reshape(-1, DIM).astype(np.float64)
        weights = part["ts"].cast(pa.int64()).to_numpy() % 1009
        found, total = found + len(part), total + float(weights @ vectors @ np.arange(1, DIM + 1))
    return [found, total]


def join_ours(folder: Path) -> dict[str, object]:
    watch = Watch()
    impressions = pq.read_table(folder / "impressions.parquet")
    joined = open_warehouse(folder / "join").join(impressions, item=None, fill="null").to_arrow()
    return {**watch.read(), "check": checksum(joined, "user_augment")}


def join_bare(folder: Path) -> dict[str, object]:
    features = next((folder / "join" / "features" / "user_features").glob("*.parquet"))
    watch = Watch()
    with duckdb.connect() as con:
        query = BARE.format(impressions=folder / "impressions.parquet", features=features)
        joined = con.sql(query).to_arrow_table()
    return {**watch.read(), "check": checksum(joined, "augment")}


def read_all(folder: Path) -> dict[str, object]:
    watch = Watch()
    table = open_warehouse(folder / "publish").table("user_features", ["user_id", "augment"]).to_arrow()
    return {**watch.read(), "rows": table.num_rows}


def make_night(folder: Path, users: int) -> None:
    """What runs have stored of `users` with two answered partitions each, and what a night adds: 1 % have a third."""
    from adapters.config import AdapterConfig
    from adapters.train import fit_projection

    rng = np.random.default_rng(5)
    for name, first, rows in (("old", 0, 2 * users), ("new", 2 * users, users // 100)):
        for lo in range(first, first + rows, PIECE_ROWS):
            size = min(PIECE_ROWS, first + rows - lo)
            numbers = np.arange(lo, lo + size)
            keys = hex_keys(rng, size)
            for table, made in {
                "requests": answered_requests(keys, numbers % users, numbers // users, rng),
                "knowledge": texts(keys),
                "embeddings": embeddings(keys, rng),
            }.items():
                write_table(folder / "night" / table / f"{name}-{lo:010d}.parquet", made)
    sample = rng.standard_normal((4000, TEXT_DIM), dtype=np.float32)
    fit_projection(sample, sample, AdapterConfig(), encoder_id="encoder").save(folder / "adapter")


def answered_requests(keys: pa.Array, users: np.ndarray, partitions: np.ndarray, rng: np.random.Generator) -> pa.Table:
    rows = len(keys)
    constants = {"kind": "user_summary", "prompt": "What does this reader like? " * 20, "group": None,
                 "prompt_version": "version", "engine_id": "engine"}  # fmt: skip
    columns = {
        **{name: pa.repeat(pa.scalar(value, pa.string()), rows) for name, value in constants.items()},
        "request_key": keys,
        "entity_id": user_ids(users),
        "partition_no": pa.array(partitions.astype(np.int32)),
        "as_of": moments(rng, rows),
        "source_digest": hex_keys(rng, rows),
        "created_at": pa.repeat(pa.scalar(START, TIMESTAMP), rows),
    }
    return pa.table([columns[name] for name in REQUESTS.names], schema=REQUESTS)


def texts(keys: pa.Array) -> pa.Table:
    constants: dict[str, object] = {"text": "Likes quiet stories about lamps. " * 8, "status": "ok", "tokens_in": 200,
                                    "finish_reason": "stop", "tokens_out": 60, "model": "m", "sampling": "{}",
                                    "verification": "strict", "prompt_version": "version",
                                    "created_at": START}  # fmt: skip
    columns = [
        keys if field.name == "request_key" else pa.repeat(pa.scalar(constants.get(field.name), field.type), len(keys))
        for field in KNOWLEDGE
    ]
    return pa.table(columns, schema=KNOWLEDGE)


def embeddings(keys: pa.Array, rng: np.random.Generator) -> pa.Table:
    rows, schema = len(keys), embeddings_schema(TEXT_DIM)
    vectors = pa.array(rng.standard_normal(rows * TEXT_DIM, dtype=np.float32))
    columns = [keys, pa.repeat("encoder", rows), pa.FixedSizeListArray.from_arrays(vectors, TEXT_DIM)]
    return pa.table([*columns, pa.array(np.zeros(rows, np.int32))], schema=schema)


def night(folder: Path, new: int) -> dict[str, object]:
    """The publishing stage of a run: of everything, or with `new` of what came since."""
    from adapters.knowledge import Stored
    from adapters.rows import missing_rows
    from adapters.touched import inputs_of, touched_since
    from adapters.trained import TrainedAdapter

    adapter, root = TrainedAdapter.load(folder / "adapter"), folder / "published"

    def stored(pattern: str) -> Stored:
        requests, knowledge, vectors = (
            sorted((folder / "night" / table).glob(pattern)) for table in ("requests", "knowledge", "embeddings")
        )
        return Stored(
            requests=requests,
            knowledge=knowledge,
            embeddings=vectors,
            engine_id="engine",
            encoder_id="encoder",
            dim=TEXT_DIM,
            prompt_versions=dict.fromkeys(("user_summary", "item_facts"), "version"),
        )

    watch = Watch()
    known, now = stored("*" if new else "old-*"), datetime.now(UTC)
    only, published = None, {}
    if new:
        current = open_warehouse(root).snapshot
        published = {table: current.files(root, table) for table in FEATURES}
        version = adapter.meta.version
        only = touched_since(known, inputs_of(known, version), inputs_of(stored("old-*"), version))
    rows = missing_rows(known, adapter, published, now, only)
    made = publish(root, rows, replace=not new, now=now, lineage={}, checks=ChecksConfig())
    return {**watch.read(), "rows": made.stats["user_features"]["rows_added"]}


STEPS: dict[str, Callable[..., Mapping[str, object]]] = {
    "join_ours": join_ours,
    "join_bare": join_bare,
    "add": add_rows,
    "read": read_all,
    "night": night,
}


def in_child(step: str, folder: Path, *numbers: int) -> dict[str, Any]:
    """What the step returns, done in a process of its own."""
    command = [sys.executable, __file__, "--child", step, str(folder), *map(str, numbers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_join(folder: Path, scale: float, repeats: int) -> dict[str, float]:
    make_join(folder, scale)
    runs: dict[str, list[dict[str, Any]]] = {"join_ours": [], "join_bare": []}
    for _ in range(repeats):
        for step in runs:
            runs[step].append(in_child(step, folder))
    checks = [run["check"] for done in runs.values() for run in done]
    if any(c[0] != checks[0][0] or abs(c[1] - checks[0][1]) > 1e-6 * abs(checks[0][1]) for c in checks):
        raise SystemExit(f"The join and DuckDB's found different vectors: {checks}")
    ours, bare = runs["join_ours"], runs["join_bare"]
    return {
        "impressions": int(10_000_000 * scale),
        "feature_rows": int(2_000_000 * scale),
        "matched": checks[0][0],
        **middle("ours", ours),
        **middle("bare_asof", bare),
        **ratios("ours_to_bare", ours, bare),
    }


def measure_publication(folder: Path, scale: float, repeats: int) -> dict[str, float]:
    rows = int(10_000_000 * scale)
    share = rows // 100
    full, read = [in_child("add", folder, 0, rows)], [in_child("read", folder)]
    if read[0]["rows"] != rows:
        raise SystemExit(f"{read[0]['rows']} of {rows} rows were read.")
    added = [in_child("add", folder, rows + share * place, share) for place in range(repeats)]
    return {
        "rows": rows,
        "bytes": sum(path.stat().st_size for path in (folder / "publish").rglob("*.parquet")),
        "rows_added": share,
        **middle("publish", full),
        **middle("read", read),
        **middle("add", added),
        **ratios("add_to_publish", added, full),
    }


def measure_night(folder: Path, scale: float, _repeats: int) -> dict[str, float]:
    users = int(200_000 * scale)
    make_night(folder, users)
    full, new = in_child("night", folder, 0), in_child("night", folder, 1)
    if (full["rows"], new["rows"]) != (2 * users, users // 100):
        raise SystemExit(f"{full['rows']} and {new['rows']} rows were published of {users} users.")
    counts = {"texts": 2 * users, "new_texts": users // 100}
    return {**counts, **middle("full", [full]), **middle("new", [new]), **ratios("new_to_full", [new], [full])}


def middle(name: str, runs: list[dict[str, Any]]) -> dict[str, float]:
    """Median times and the highest peak, under names that begin so."""
    times = {f"{name}_{key}": round(median(run[key] for run in runs), 3) for key in ("seconds", "cpu_seconds")}
    return {**times, f"{name}_peak_mb": round(max(run["peak_mb"] for run in runs))}


def ratios(name: str, some: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, float]:
    """Of the medians, in seconds and in seconds of CPU: the second holds on a busy machine too."""
    return {
        f"{name}_{key}": round(median(run[key] for run in some) / median(run[key] for run in others), 4)
        for key in ("seconds", "cpu_seconds")
    }


PARTS: dict[str, Callable[[Path, float, int], dict[str, float]]] = {
    "join": measure_join,
    "publication": measure_publication,
    "night": measure_night,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rows")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go while it runs (default: the temporary folder)")
    parser.add_argument("--child", nargs="+", metavar="STEP", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        step, folder, *numbers = given.child
        print(json.dumps(STEPS[step](Path(folder), *map(int, numbers))))
        return
    found: dict[str, object] = {"cores": os.cpu_count(), "duckdb": duckdb.__version__, "arrow": pa.__version__}
    for part in given.parts:
        with tempfile.TemporaryDirectory(prefix="lorestream-warehouse-", dir=given.folder) as scratch:
            figures = PARTS[part](Path(scratch), 0.05 if given.quick else 1.0, given.repeats)
        found[part] = figures
        if not given.json:
            print(part)
            for name, value in figures.items():
                print(f"  {name:24} {value:>16,}")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
