"""The `explain` verb: what made the value that a user or an item had at a moment, as a page to read."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from flows.config import Config
from warehouse.clock import Clock
from warehouse.reader import open as open_warehouse

_SHOWN_NUMBERS = 4


def explain(
    config: Config, user: str | None, item: str | None, at: datetime, clock: Clock, snapshot: str | None
) -> dict[str, Any]:
    """The record of `Warehouse.explain`. Raises as it does."""
    return open_warehouse(config.root, snapshot).explain(at, user=user, item=item, clock=clock)


def as_page(found: Mapping[str, Any]) -> str:
    """The record as text: the row, then what it was made of, oldest first."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    side = "user" if "user_id" in found else "item"
    row = found["row"]
    asked = f"at {_time(found['at'])}, {found['clock']} clock, snapshot {found['snapshot_id']}"
    yield f"{side} {found[f'{side}_id']} {asked}"
    if row is None:
        yield from _notes(found)
        return
    yield f"row       valid after {_time(row['valid_from'])}, made {_time(row['created_at'])}"
    yield f"          rung {row['rung']}, status {row['status']}, published in {row['snapshot_id']}"
    yield f"augment   {_vector(row['augment'])}"
    adapter = found["adapter"]
    trained = f", trained on events before {_time(adapter['valid_from'])}" if adapter.get("valid_from") else ""
    yield f"adapter   {adapter['version']} ({adapter.get('kind') or 'not in this warehouse'}{trained})"
    yield f"encoder   {row['encoder_id']}"
    yield from _notes(found)
    if version := found.get("version"):
        yield f"version   {version['title']}, from {_time(version['valid_from'])}: {version['attributes']}"
    for partition in found.get("partitions", ()):
        yield ""
        lasted = f"{_time(partition['opened_at'])} to {_time(partition['sealed_at'])}"
        yield f"partition {partition['partition_no']}, {lasted}"
        for event in partition["events"]:
            when = _time(event["ts"]) if event["ts"] else "some time in it"
            yield f"  {when}  {event['item_id']}  {event['value']:g}  {event['title'] or ''}"
    for group in found["groups"]:
        yield ""
        stands = "its own text" if group["mean_of"] == 1 else f"the mean of {group['mean_of']} groups' texts"
        yield f"group     {group['kind']} {group['group_id'] or 'none'} ({group['size'] or 0} members), by {stands}"
    for text in found["texts"]:
        yield ""
        number = "" if text["partition_no"] is None else f" of partition {text['partition_no']}"
        used = "in the vector" if text["used"] else f"not used: {text['reason'] or text['status']}"
        yield f"text      {text['kind']}{number} of {text['entity_id']}, {used}"
        yield f"          {text['model']}, call {text['request_key']}, answered {_time(text['answered_at'])}"
        yield from _indented("prompt", text["prompt"])
        yield from _indented("answer", text["text"])


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    for note in found["notes"]:
        yield f"note      {note}"


def _indented(name: str, text: str) -> Iterator[str]:
    yield f"  {name}:"
    for line in text.splitlines():
        yield f"    | {line}"


def _vector(numbers: Sequence[float] | None) -> str:
    if numbers is None:
        return "none"
    shown = ", ".join(f"{number:.4f}" for number in numbers[:_SHOWN_NUMBERS])
    return f"[{shown}{', ...' if len(numbers) > _SHOWN_NUMBERS else ''}] ({len(numbers)} numbers)"


def _time(moment: datetime | str) -> str:
    return moment if isinstance(moment, str) else moment.isoformat(sep=" ", timespec="seconds")
