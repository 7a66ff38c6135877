"""Erasure at size: one user, and one item that many users met, among 10 million events and 2 million published rows.

    python benchmarks/erase.py [--json] [--quick]

The warehouse has ten runs' files of events, sealed partitions of 50 with a request, a text and a vector of 384 numbers
for one in ten, and ten snapshots of user vectors. Each erasure is done in a process of its own on a copy that shares
all files, so that its peak of memory is its own; the events are scanned first to see that the id is there, and last
that it is not. The user is in one file of each kind, the item in all. `--quick` takes a twentieth of everything.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from warehouse.erase import IdColumns, erase
from warehouse.ledger import Ledger
from warehouse.lock import writer_lock
from warehouse.manifest import publish
from warehouse.schemas import BEHAVIOURS, FEATURES, ITEM_VERSIONS, KNOWLEDGE, PARTITIONS, REQUESTS, TIMESTAMP
from warehouse.schemas import embeddings_schema as embeddings
from warehouse.sql import connect, parquet_view, quote
from warehouse.store import write_table
from warehouse.traces import Subjects

EVENTS, USERS, ITEMS, RUNS, SIZE, DIM = 10_000_000, 200_000, 20_000, 10, 50, 32
START = datetime(2024, 1, 1, tzinfo=UTC)
USER, ITEM = "u0000042", "i0000007"


def ids(letter: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(letter, pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 7, "0"), "")


def rows(schema: pa.Schema, count: int, columns: dict[str, object]) -> pa.Table:
    """A table whose other columns hold one plain value."""
    plain = {pa.string(): "x" * 16, pa.int32(): 1, TIMESTAMP: START}
    arrays = []
    for field in schema:
        value = columns.get(field.name, plain.get(field.type))
        arrays.append(value if isinstance(value, pa.Array) else pa.repeat(pa.scalar(value, field.type), count))
    return pa.Table.from_arrays([array.cast(f.type) for array, f in zip(arrays, schema, strict=True)], schema=schema)


def lists(flat: pa.Array, length: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat) + 1, length, dtype=np.int32)), flat)


def build(root: Path, scale: int) -> None:
    """The warehouse: each run has the events of a tenth of the users."""
    rng, ledger = np.random.default_rng(0), Ledger(root)
    events, users, items = EVENTS // scale // RUNS, USERS // scale // RUNS, ITEMS // scale
    publish(root, {}, replace=False, now=START, lineage={})
    ledger.commit("init", add={}, now=START)
    titles = pc.binary_join_element_wise("A title of ", ids("i", np.arange(items)), "")
    catalogue = {"item_id": ids("i", np.arange(items)), "title": titles, "attributes": "{}"}
    write_table(root / "items" / "0.parquet", rows(ITEM_VERSIONS, items, catalogue))
    ledger.commit("ingest", add={"items": ["items/0.parquet"]}, now=START)
    for run in range(RUNS):
        who = run * users + np.repeat(np.arange(users), events // users)
        what = ids("i", (items * rng.random(len(who)) ** 2).astype(np.int64))
        at = pa.array(int(START.timestamp() * 1e6) + np.arange(len(who)) * 1000).cast(TIMESTAMP)
        behaviours = {"user_id": ids("u", who), "item_id": what, "ts": at, "value": pa.array(np.ones(len(who), "f4"))}
        add = {"behaviours": rows(BEHAVIOURS, len(who), behaviours)}
        sealed = len(who) // SIZE
        owner = ids("u", who[::SIZE])
        lined = {"items": lists(what, SIZE), "values": lists(pa.array(np.ones(len(who), "f4")), SIZE)}
        key = ids(f"k{run}-", np.arange(sealed))
        add["partitions"] = rows(PARTITIONS, sealed, {"user_id": owner, "digest": key, **lined})
        first = pc.list_element(lined["items"], 0)
        asked = {"request_key": key, "kind": "user_summary", "entity_id": owner, "prompt": first}
        add["requests"] = rows(REQUESTS, sealed, asked)
        for table, made in add.items():
            write_table(root / table / f"{run}.parquet", made)
        ledger.commit("run", add={table: [f"{table}/{run}.parquet"] for table in add}, now=START)
        texts = {"request_key": key, "text": pc.binary_join_element_wise("Likes ", first, ""), "status": "ok"}
        write_table(root / "knowledge" / f"{run}.parquet", rows(KNOWLEDGE, sealed, texts))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(sealed // 10 * 384, "f4")), 384)
        few = {"request_key": key[: sealed // 10], "vector": vectors}
        write_table(root / "embeddings" / f"{run}.parquet", rows(embeddings(384), sealed // 10, few))
        public(root, rng, run, users, 10)


def public(root: Path, rng: np.random.Generator, run: int, users: int, each: int) -> None:
    """Publish `each` rows of every user of the run, one per partition."""
    schema = FEATURES["user_features"].remove(FEATURES["user_features"].get_field_index("snapshot_id"))
    count = users * each
    augment = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(count * DIM, "f4")), DIM)
    columns = {
        "user_id": ids("u", run * users + np.repeat(np.arange(users), each)),
        "augment": augment.cast(pa.list_(pa.float32())),
        "augment_dim": DIM,
        "rung": "own",
    }
    made = rows(schema, count, columns)
    publish(root, {"user_features": made}, replace=False, now=START + timedelta(days=run), lineage={"run": run})


def erase_once(root: Path, user: str, item: str) -> dict[str, object]:
    """Seconds, peak memory and counts of one erasure in this process."""
    subjects = Subjects(frozenset([user] if user else []), frozenset([item] if item else []))
    assert named(root, subjects), "the id should be there to be erased"
    before = stored_bytes(root)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    with writer_lock(root, "benchmark"):
        report = erase(root, subjects, IdColumns(), lambda: datetime.now(UTC))
    seconds = time.perf_counter() - began
    assert not named(root, subjects), "the id is still there"
    return {
        "seconds": round(seconds, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "peak_before_gb": round(base / 1e6, 2),
        "stored_gb": round(before / 1e9, 2),
        "rows": report["rows"],
    }


def named(root: Path, subjects: Subjects) -> int:
    """Events that name somebody."""
    who = ", ".join(map(quote, sorted(subjects.users | subjects.items)))
    with connect() as con:
        parquet_view(con, "behaviours", Ledger(root).files("behaviours"), BEHAVIOURS)
        return int(
            con.execute(f"SELECT count(*) FROM behaviours WHERE user_id IN ({who}) OR item_id IN ({who})").fetchall()[
                0
            ][0]
        )


def stored_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--once", nargs=3, metavar=("ROOT", "USER", "ITEM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(erase_once(Path(given.once[0]), given.once[1], given.once[2])))
        return
    scale = 20 if given.quick else 1
    with tempfile.TemporaryDirectory(prefix="lorestream-bench-") as folder:
        root = Path(folder, "warehouse")
        build(root, scale)
        found: dict[str, object] = {"events": EVENTS // scale, "published_rows": USERS // scale * 10}
        for name, user, item in (("user", USER, ""), ("item", "", ITEM)):
            # Files are never edited in place but for those of texts, which are replaced: links are copies enough.
            copy = shutil.copytree(root, Path(folder, name), copy_function=os.link)
            command = [sys.executable, __file__, "--once", str(copy), user, item]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout)
            shutil.rmtree(copy)
    if given.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
