"""The rules of DESIGN section 3 once more, over plain lists: one user, one event at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from math import copysign
from struct import pack

import pyarrow as pa

from augment.sealing import PartitionConfig
from warehouse.schemas import BEHAVIOURS, OPEN_PARTITIONS, PARTITIONS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 86_400_000_000

# user_id, item_id, ts in microseconds, value, action
Row = tuple[str, str, int, float, str]
# ts, item_id, value
Event = tuple[int, str, float]


@dataclass
class User:
    """What a user's next run starts from."""

    number: int = 0
    floor: int | None = None
    events: list[Event] = field(default_factory=list)


def behaviours(rows: Iterable[Row]) -> pa.Table:
    users, items, ts, values, actions = zip(*rows, strict=True) if rows else ((),) * 5
    columns = [users, items, pa.array(ts, pa.int64()).cast(BEHAVIOURS.field("ts").type), values, actions]
    return pa.table(columns, schema=BEHAVIOURS)


class Oracle:
    """All users' states; `run` folds a run's events into them and returns what it sealed, as PARTITIONS."""

    def __init__(self, config: PartitionConfig) -> None:
        self.config = config
        self.users: dict[str, User] = {}

    def run(self, rows: Sequence[Row]) -> pa.Table:
        sealed = []
        for name in sorted({row[0] for row in rows}):
            user = self.users.setdefault(name, User())
            sealed += self._fold(name, user, [row for row in rows if row[0] == name])
        return pa.Table.from_pylist(sealed, PARTITIONS)

    def open_partitions(self) -> pa.Table:
        rows = [
            {
                "user_id": name,
                "partition_no": user.number,
                "sealed_floor": None if user.floor is None else at(user.floor),
                "items": [item for _, item, _ in user.events],
                "ts": [at(ts) for ts, _, _ in user.events],
                "values": [value for _, _, value in user.events],
            }
            for name, user in sorted(self.users.items())
        ]
        return pa.Table.from_pylist(rows, OPEN_PARTITIONS)

    def _fold(self, name: str, user: User, rows: list[Row]) -> list[dict[str, object]]:
        # Those that stand in the open partition already arrived first; the others' order of arrival has no say.
        arrived = [(ts, item, 0, place, "", value) for place, (ts, item, value) in enumerate(user.events)]
        # copysign: -0.0 == 0.0, yet they differ.
        arriving = [(ts, item, 1, 0, action, value) for _, item, ts, value, action in rows]
        pending = sorted(arrived + arriving, key=lambda event: (*event, copysign(1.0, event[-1])))
        user.events = []
        sealed = []

        def seal() -> None:
            opened, last = user.events[0][0], user.events[-1][0]
            user.floor = last if user.floor is None else max(user.floor, last)
            sealed.append(
                {
                    "user_id": name,
                    "partition_no": user.number,
                    "opened_at": at(opened),
                    "sealed_at": at(user.floor),
                    "items": [item for _, item, _ in user.events],
                    "values": [value for _, _, value in user.events],
                    "digest": digest(name, user.number, user.events),
                }
            )
            user.number, user.events = user.number + 1, []

        for ts, item, _, _, _, value in pending:
            if user.events and self._ends_before(ts, user.events):
                seal()
            user.events.append((ts, item, value))
            if len(user.events) == self.config.sizes[min(user.number, len(self.config.sizes) - 1)]:
                seal()
        return sealed

    def _ends_before(self, ts: int, events: list[Event]) -> bool:
        age, gap = self.config.max_age_days, self.config.gap_days
        too_old = age is not None and ts - events[0][0] > round(age * DAY)
        too_late = gap is not None and ts - events[-1][0] > round(gap * DAY)
        return too_old or too_late


def digest(user: str, number: int, events: Sequence[Event]) -> str:
    """The documented bytes, written one by one."""
    body = pack("<I", len(user.encode())) + user.encode() + pack("<II", number, len(events))
    body += b"".join(pack("<qfI", ts, value, len(item.encode())) for ts, item, value in events)
    body += b"".join(item.encode() for _, item, _ in events)
    return blake2b(body, digest_size=16).hexdigest()


def at(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)
