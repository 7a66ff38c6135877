import random
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from adapters.lift.config import Protocol
from adapters.lift.data import LiftData
from adapters.lift.splits import FIRST_EVENTS, KAR_SEED, event_places, split_by
from warehouse.errors import InputError

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_event_is_in_two_parts(data: LiftData, protocol: Protocol) -> None:
    split = split_by(protocol, data.samples)
    rows = np.concatenate([split.train, split.valid, split.test])
    assert len(np.unique(rows)) == len(rows)
    assert min(map(len, (split.train, split.valid, split.test))) > 0


@pytest.mark.parametrize("protocol", ["kar", "cold_users"])
def test_no_user_is_in_two_parts(data: LiftData, protocol: Protocol) -> None:
    split = split_by(protocol, data.samples)
    train, valid, test = (set(data.samples.user[rows].tolist()) for rows in (split.train, split.valid, split.test))
    assert not train & valid
    assert not train & test
    assert not valid & test


def test_kars_targets_come_after_what_the_llm_was_shown(data: LiftData) -> None:
    samples = data.samples
    split = split_by("kar", samples)
    targets = set(np.concatenate([split.train, split.valid, split.test]).tolist())
    for user in np.unique(samples.user)[:40]:
        events = np.flatnonzero(samples.user == user)
        shown = min(int(np.ceil(len(events) / 2)), 30)
        assert [int(e) in targets for e in events] == [place >= shown for place in range(len(events))]


def test_kars_test_users_are_the_last_tenth_of_its_shuffle(data: LiftData) -> None:
    samples = data.samples
    numbered = replace(samples, users=samples.users.from_pandas(np.array([i[1:] for i in samples.users.to_pylist()])))
    order = sorted(numbered.users.to_pylist(), key=int)
    random.Random(KAR_SEED).shuffle(order)
    split = split_by("kar", numbered)
    test = {numbered.users[int(u)].as_py() for u in samples.user[split.test]}
    assert test == set(order[int(0.9 * len(order)) :])


def test_time_is_cut_so_that_what_teaches_is_older(data: LiftData) -> None:
    split, ts = split_by("time", data.samples), data.samples.ts
    assert ts[split.train].max() < ts[split.valid].min()
    assert ts[split.valid].max() < ts[split.test].min()


def test_cold_items_teach_nothing_and_stand_in_no_history(data: LiftData) -> None:
    split = split_by("cold_items", data.samples)
    samples = split.samples
    train, valid, test = (set(samples.item[rows].tolist()) for rows in (split.train, split.valid, split.test))
    assert not train & valid
    assert not train & test
    assert not valid & test
    seen = set(np.unique(samples.liked - 1).tolist() + np.unique(samples.disliked - 1).tolist()) - {-1}
    assert seen <= train
    assert seen


def test_cold_users_are_judged_on_their_first_events(data: LiftData) -> None:
    split = split_by("cold_users", data.samples)
    place, _ = event_places(data.samples.user)
    assert (place[split.test] < FIRST_EVENTS).all()
    assert set(place[split.test]) == set(range(FIRST_EVENTS))


def test_places_count_each_users_events() -> None:
    place, count = event_places(np.array([3, 1, 3, 3, 1, 0]))
    assert place.tolist() == [0, 0, 1, 2, 1, 0]
    assert count.tolist() == [3, 2, 3, 3, 2, 1]


def test_a_sample_of_users_keeps_each_users_part(data: LiftData) -> None:
    some = data.of_users(60)
    assert len(np.unique(some.samples.user)) == 60
    parts = {}
    for samples in (data.samples, some.samples):
        split = split_by("kar", samples)
        for name, rows in (("train", split.train), ("valid", split.valid), ("test", split.test)):
            for user in np.unique(samples.user[rows]):
                assert parts.setdefault(int(user), name) == name


def test_a_part_of_one_class_is_refused(data: LiftData) -> None:
    samples = replace(data.samples, label=np.ones_like(data.samples.label))
    with pytest.raises(InputError, match="it takes both kinds"):
        split_by("time", samples)
