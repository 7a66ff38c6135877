"""The protocols: which events teach, which choose the epoch, which are judged, and what histories may hold.

kar         users are split; a user's first n = min(ceil(events / 2), 30) events, which the LLM is shown, are never
            targets; seed and rules of KAR's code, but with validation users of their own
time        training < validation < test by time
cold_items  items are split; no event of a held-out item teaches or stands in any history
cold_users  users are split; judged are the first events of users without any training event
"""

import random
from dataclasses import dataclass, replace

import numpy as np

from adapters.lift.config import Protocol
from adapters.samples import Samples, history, time_split
from warehouse.errors import InputError

KAR_SEED = 1234
KAR_HISTORY = 30
VALIDATION, TEST = 0.1, 0.1
# Of cold items only their own events are judged, of cold users only their first: a tenth would be few.
COLD_TEST = 0.2
# Protocols in which every seed of a matrix deals anew which items or users are cold.
DEALT: frozenset[Protocol] = frozenset({"cold_items", "cold_users"})
FIRST_EVENTS = 20


@dataclass(frozen=True)
class Split:
    """Positions of training, validation and test samples, and the samples, whose histories the protocol may cut."""

    protocol: Protocol
    samples: Samples
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def split_by(protocol: Protocol, samples: Samples, seed: int = KAR_SEED) -> Split:
    """The split of a protocol. `samples` are in order of time.

    Raises InputError when a part would be empty or of one class.
    """
    if protocol == "time":
        masks = time_split(samples.ts, VALIDATION, TEST).masks(samples.ts)
    elif protocol == "cold_items":
        part = _deal(len(samples.items), COLD_TEST, seed, samples.items.to_pylist())[samples.item]
        masks = part == 0, part == 1, part == 2
        samples = without_items(samples, part != 0)
    else:
        share = TEST if protocol == "kar" else COLD_TEST
        part = _deal(len(samples.users), share, seed, samples.users.to_pylist())[samples.user]
        place, count = event_places(samples.user)
        if protocol == "kar":
            target = place >= np.minimum(-(-count // 2), KAR_HISTORY)
            masks = target & (part == 0), target & (part == 1), target & (part == 2)
        else:
            first = place < FIRST_EVENTS
            masks = part == 0, first & (part == 1), first & (part == 2)
    train, valid, test = (np.flatnonzero(mask) for mask in masks)
    for name, rows in (("training", train), ("validation", valid), ("test", test)):
        positive = int(samples.label[rows].sum())
        if positive in (0, len(rows)):
            raise InputError(
                f"The protocol `{protocol}` leaves {len(rows)} {name} samples, {positive} of them positive; it takes "
                "both kinds. Give more events, or leave the protocol out."
            )
    return Split(protocol, samples, train, valid, test)


def event_places(user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each event's place among its user's, from 0 in the order given, and how many the user has. int64 [n] both."""
    order = np.argsort(user, kind="stable")
    ordered = user[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(user)])
    counts = np.diff(np.append(starts, len(user)))
    place, count = np.empty(len(user), dtype=np.int64), np.empty(len(user), dtype=np.int64)
    place[order] = np.arange(len(user)) - np.repeat(starts, counts)
    count[order] = np.repeat(counts, counts)
    return place, count


def without_items(samples: Samples, removed: np.ndarray) -> Samples:
    """The samples with histories that the events of `removed` [n] never stood in."""
    liked = samples.label > 0
    made = (
        history(samples.user, samples.item, samples.ts, side & ~removed, samples.liked.shape[1])
        for side in (liked, ~liked)
    )
    return replace(samples, liked=next(made), disliked=next(made))


def _deal(count: int, test: float, seed: int, ids: list[str]) -> np.ndarray:
    """Part per entity: 0 training, 1 validation, 2 test. Shuffled as KAR's code does, from the order of the ids.

    Numbers are in numeric order, as in MovieLens's files; Python's own generator, so that KAR's test users are ours.
    """
    order = sorted(
        range(count), key=lambda code: (len(ids[code]), ids[code]) if ids[code].isdigit() else (0, ids[code])
    )
    random.Random(seed).shuffle(order)
    part = np.zeros(count, dtype=np.int8)
    first_test = int(count * (1 - test))
    part[order[first_test:]] = 2
    part[order[int(count * (1 - test - VALIDATION)) : first_test]] = 1
    return part
