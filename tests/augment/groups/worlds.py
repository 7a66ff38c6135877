"""Small worlds of groups: logs from plain tuples, and circles of users who like nothing but their circle's items."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augment.groups.build import GroupSet, build_groups
from augment.groups.config import GroupsConfig
from augment.groups.features import Floats
from warehouse.schemas import BEHAVIOURS

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
POSITIVE = "(value > 3)"

# user, item, hour after NOON, value
Event = tuple[str, str, int, float]


def at(hour: int) -> datetime:
    return NOON + timedelta(hours=hour)


def write_log(path: Path, events: Iterable[Event]) -> Path:
    rows = [
        {"user_id": user, "item_id": item, "ts": at(hour), "value": value, "action": "interact"}
        for user, item, hour, value in events
    ]
    pq.write_table(pa.Table.from_pylist(rows, BEHAVIOURS), path)
    return path


@contextmanager
def log_files(*logs: Sequence[Event]) -> Iterator[list[Path]]:
    """A file per log, for the block."""
    with TemporaryDirectory() as folder:
        yield [write_log(Path(folder) / f"{number}.parquet", log) for number, log in enumerate(logs)]


def circles(count: int, users: int, items: int, seed: int = 0) -> list[Event]:
    """Events of `count` circles of so many users and items each: what a user likes is of the circle, the rest is not.

    Ids are `u<circle>.<user>` and `i<circle>.<item>`. A user likes two thirds of the circle's items and dislikes two of
    the next one's.
    """
    random = np.random.default_rng(seed)
    events: list[Event] = []
    for circle in range(count):
        for user in range(users):
            name = f"u{circle}.{user:03d}"
            for item in random.permutation(items)[: -(-2 * items // 3)].tolist():
                events.append((name, f"i{circle}.{item:03d}", len(events), 5.0))
            for item in random.permutation(items)[:2].tolist():
                events.append((name, f"i{(circle + 1) % count}.{item:03d}", len(events), 1.0))
    return events


def item_ids(events: Sequence[Event]) -> list[str]:
    return sorted({item for _, item, _, _ in events})


def build(
    files: Sequence[Path],
    items: Sequence[str],
    config: GroupsConfig,
    text: Floats | None = None,
    until: datetime | None = None,
) -> GroupSet:
    return build_groups(files, POSITIVE, items, text, config, generation=3, created_at=at(10_000), until=until)
