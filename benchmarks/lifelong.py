"""Lifelong histories night by night through partitioning, and what 100 million users would take.

    python benchmarks/lifelong.py [--json] [--users N] [--events N] [--nights N] [--tokens-per-s N]

Each night's events are made, partitioned together with the open partitions of the night before, and deleted: the
warehouse never reads a history twice, and memory does not grow with it. Every night runs in a process of its own; the
highest resident memory of any is reported. The sizing scales the measured bytes and partitions per event; what an LLM
writes per second is given (`--tokens-per-s`), as measured on the engine at hand.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from partition import Log

from augment.sealing import PartitionConfig

CONFIG = PartitionConfig(buckets=64)
ITEMS = 300_000
# Of the demo and of MovieLens-1M with KAR's prompts, rounded: what one call reads and writes.
TOKENS_IN, TOKENS_OUT = 450, 250
DIM, EMBEDDING = 32, 384
TEXT_BYTES = 1_100


def run_night(source: Path, open_files: list[Path], out: Path, night: int) -> None:
    """Print what one night did."""
    from augment.partition import partition_events

    began = time.perf_counter()
    report = partition_events([source], open_files, out, f"n{night:03d}", CONFIG)
    seconds = time.perf_counter() - began
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    found = {
        "seconds": seconds,
        "sealed": report.sealed,
        "partition_bytes": sum(path.stat().st_size for path in report.partition_files),
        "open_bytes": sum(path.stat().st_size for path in report.open_files),
        "open_files": [str(path) for path in report.open_files],
        "superseded": [str(path) for path in report.superseded_files],
        "peak_mb": int(status["VmHWM"].split()[0]) / 1024,
    }
    print(json.dumps(found))


def stream(folder: Path, users: int, events: int, nights: int) -> dict[str, Any]:
    """The figures of all nights together."""
    log = Log(users, ITEMS)
    open_files: list[str] = []
    totals = {"seconds": 0.0, "sealed": 0, "partition_bytes": 0}
    peak, last = 0.0, {}
    for night in range(nights):
        source = folder / "night.parquet"
        size = events * (night + 1) // nights - events * night // nights
        pq.write_table(log.piece(night / nights, (night + 1) / nights, size), source)
        child = [sys.executable, __file__, "--child", str(night), str(source), str(folder), *open_files]
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        last = json.loads(done.stdout.splitlines()[-1])
        for path in last["superseded"]:
            Path(path).unlink()
        open_files = sorted({*open_files, *last["open_files"]} - {*last["superseded"]})
        for key in totals:
            totals[key] += last[key]
        peak = max(peak, last["peak_mb"])
        source.unlink()
        print(f"night {night + 1} of {nights}: {last['seconds']:.1f} s, {last['sealed']:,} sealed", file=sys.stderr)
    return {
        "users": users,
        "events": events,
        "nights": nights,
        "events_per_s": round(events / totals["seconds"]),
        "last_night_s": round(last["seconds"], 1),
        "partitions": int(totals["sealed"]),
        "partition_bytes_per_event": round(totals["partition_bytes"] / events, 2),
        "open_bytes_per_user": round(sum(Path(path).stat().st_size for path in open_files) / users, 1),
        "peak_mb": round(peak),
    }


def sizing(found: dict[str, Any], users: int, tokens_per_s: float) -> dict[str, Any]:
    """What `users` with as many events each would take, by the measured figures."""
    scale = users / found["users"]
    partitions, events = found["partitions"] * scale, found["events"] * scale
    yearly = partitions / 3
    return {
        "users": users,
        "events": round(events),
        "partitions": round(partitions),
        "partitions_gb": round(events * found["partition_bytes_per_event"] / 1e9),
        "open_gb": round(users * found["open_bytes_per_user"] / 1e9),
        "texts_gb": round(partitions * TEXT_BYTES / 1e9),
        "embeddings_gb_float16": round(partitions * EMBEDDING * 2 / 1e9),
        "features_gb": round(partitions * DIM * 4 / 1e9),
        "calls_per_night": round(yearly / 365),
        "output_tokens_per_night": round(yearly / 365 * TOKENS_OUT),
        "engine_hours_per_night": round(yearly / 365 * TOKENS_OUT / tokens_per_s / 3600, 1),
        "engine_hours_backfill": round(partitions * TOKENS_OUT / tokens_per_s / 3600),
        "partitioning_core_pair_hours_backfill": round(events / found["events_per_s"] / 3600, 1),
        "assumed": {"tokens_out_per_call": TOKENS_OUT, "tokens_in_per_call": TOKENS_IN, "tokens_per_s": tokens_per_s},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--users", type=int, default=2_000_000)
    parser.add_argument("--events", type=int, default=200_000_000)
    parser.add_argument("--nights", type=int, default=20)
    parser.add_argument("--tokens-per-s", type=float, default=3000.0, help="what an engine writes: for the sizing only")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        night, source, out, *open_files = given.child
        return run_night(Path(source), [Path(path) for path in open_files], Path(out), int(night))
    with tempfile.TemporaryDirectory(prefix="lorestream-lifelong-") as folder:
        found = stream(Path(folder), given.users, given.events, given.nights)
    found["sizing"] = sizing(found, 100_000_000, given.tokens_per_s)
    if given.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"  {key:32} {value}")


if __name__ == "__main__":
    main()
