from dataclasses import replace

import numpy as np
import pytest

from adapters.lift.arms import DAY_US, ArmSpec, Known, arm_specs, known_to
from adapters.lift.config import ARMS, Arm
from adapters.lift.data import LiftData, source_of
from adapters.lift.splits import Split, split_by


@pytest.fixture(scope="module")
def split(data: LiftData) -> Split:
    return split_by("kar", data.samples)


def known(data: LiftData, split: Split, arm: Arm, seed: int = 0) -> Known:
    return known_to(arm_specs(data, split.protocol)[arm], data, split, seed)


def test_every_arm_has_words_and_data_with_all_sources_allow_all_but_group_arms_beside_single_users(
    data: LiftData,
) -> None:
    assert set(arm_specs(data, "kar")) == set(ARMS)
    without_users = replace(
        data, sources={k: s for k, s in data.sources.items() if k not in ("summaries", "histories")}
    )
    assert not any(a.startswith("stale_") or a == "histories" for a in arm_specs(without_users, "kar"))


def test_texts_that_may_have_seen_any_event_count_in_kars_protocol_only(data: LiftData) -> None:
    for protocol in ("time", "cold_items", "cold_users"):
        for spec in arm_specs(data, protocol).values():
            assert not {*spec.item, *spec.user, *spec.group_ids} & data.leaky
    without_users = replace(data, sources={k: s for k, s in data.sources.items() if k != "summaries"})
    assert arm_specs(without_users, "kar")["full"].user == ("likes", "dislikes")
    assert arm_specs(without_users, "time")["full"].user == ()


def test_base_arms_are_told_nothing_but_demographics(data: LiftData, split: Split) -> None:
    for arm in ("base_unmasked", "base"):
        assert known(data, split, arm) == Known()
    told = known(data, split, "base_history")
    assert told.item is None
    assert told.user is None
    np.testing.assert_array_equal(told.fields["age"], data.traits["age"][split.samples.user])
    specs = arm_specs(data, "kar")
    assert [a for a, s in specs.items() if not s.id_mask] == ["base_unmasked"]
    assert [a for a, s in specs.items() if s.long_history or s.traits] == ["base_history"]


@pytest.mark.parametrize("arm", ["random", "shuffled", "mlp", "wrong_30"])
def test_controls_of_full_differ_from_it_in_what_the_vectors_say_and_not_in_who_has_one(
    data: LiftData, split: Split, arm: Arm
) -> None:
    full, control = known(data, split, "full"), known(data, split, arm)
    for one, other in ((full.item, control.item), (full.user, control.user)):
        assert one is not None
        assert other is not None
        for rows, same in zip(one.rows, other.rows, strict=True):
            np.testing.assert_array_equal(rows, same)
        for table, changed in zip(one.tables, other.tables, strict=True):
            equal = (table == changed).all(axis=1)
            share = {"random": 0.0, "shuffled": 0.0, "mlp": 1.0, "wrong_30": 0.7}[arm]
            assert equal.mean() == pytest.approx(share, abs=0.01)
    np.testing.assert_array_equal(full.item.of_item, control.item.of_item)


def test_shuffled_groups_keep_their_members_and_exchange_all_their_texts(data: LiftData, split: Split) -> None:
    true, shuffled = known(data, split, "groups").user, known(data, split, "groups_shuffled").user
    assert true is not None
    assert shuffled is not None
    for name, rows, same, table, dealt in zip(
        ("likes", "dislikes"), true.rows, shuffled.rows, true.tables, shuffled.tables, strict=True
    ):
        np.testing.assert_array_equal(rows, same)
        assert not (table == dealt).all(axis=1).any()
        assert sorted(map(tuple, dealt)) == sorted(map(tuple, table))
        np.testing.assert_array_equal(known(data, split, "group_ids").fields[name], data.sources[name].holder + 1)


def test_a_seed_deals_anew_and_equally(data: LiftData, split: Split) -> None:
    first, again, other = (known(data, split, "shuffled", seed).item.tables[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_stale_texts_are_those_that_held_so_many_days_before(data: LiftData, split: Split) -> None:
    now, stale = known(data, split, "full").user.rows[0], known(data, split, "stale_90").user.rows[0]
    valid_from, ts = data.sources["summaries"].valid_from, split.samples.ts
    assert (stale[stale >= 0] == now[stale >= 0]).all()
    late = (now >= 0) & (stale < 0)
    assert late.any()
    assert (valid_from[now[late]] >= ts[late] - 90 * DAY_US).all()


def test_a_history_never_reads_a_text_that_came_after_the_items_first_event(data: LiftData, split: Split) -> None:
    samples, facts = data.samples, data.sources["facts"]
    late = int(samples.item[len(samples) // 2])
    first = samples.ts[samples.item == late].min()
    for since, there in ((first - 1, True), (first, False)):
        valid_from = np.where(facts.entity == late, since, facts.valid_from)
        moved = replace(data, sources={**data.sources, "facts": replace(facts, valid_from=valid_from)})
        side = known_to(ArmSpec(item=("facts",)), moved, split, 0).item
        assert side is not None
        assert side.of_item is not None
        assert (side.of_item[late] >= 0) == there
        assert facts.entity[side.of_item[samples.item[0]]] == samples.item[0]


def test_a_history_reads_the_first_of_several_texts(data: LiftData, split: Split) -> None:
    facts = data.sources["facts"]
    always = np.iinfo(np.int64).min // 2
    twice = source_of(
        "item",
        np.concatenate([facts.vectors + 1, facts.vectors]),
        np.concatenate([facts.entity, facts.entity]),
        np.concatenate([np.full(len(facts.entity), int(data.samples.ts.max())), facts.valid_from]),
        facts.holder,
    )
    side = known_to(ArmSpec(item=("facts",)), replace(data, sources={"facts": twice}), split, 0).item
    assert side is not None
    assert side.of_item is not None
    assert (twice.valid_from[side.of_item] == always).all()
