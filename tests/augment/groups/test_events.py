"""The log as groups see it, against plain loops over the same tuples."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.groups.events import UserActivity, open_log, parts, sample
from tests.augment.groups.worlds import POSITIVE, Event, at, log_files

untimed = settings(deadline=None, max_examples=15)

events = st.lists(
    st.tuples(st.sampled_from("uvüw"), st.sampled_from("abxy"), st.integers(0, 9), st.sampled_from([1.0, 3.0, 5.0])),
    max_size=25,
)


def activity(*events: int) -> UserActivity:
    names = pa.array([f"u{number}" for number in range(len(events))], pa.string())
    return UserActivity(names, np.array(events, np.int64), pa.array([at(0)] * len(events)))


@untimed
@given(events, st.booleans(), st.integers(0, 10) | st.none())
def test_pairs_and_activity_are_those_of_the_catalogue_before_the_end(
    log: list[Event], sign: bool, end: int | None
) -> None:
    catalogue = ["a", "b", "never met"]
    seen = [e for e in log if e[1] in catalogue and (end is None or e[2] < end)]
    mine = [e for e in seen if (e[3] > 3) == sign]
    until = None if end is None else at(end)
    with log_files(log[::2], log[1::2]) as files, open_log(files, POSITIVE, catalogue, until) as found:
        assert found.end() == (at(max(e[2] for e in seen)) if seen else None)
        users = found.activity(sign)
        pairs = found.pairs(sign, users.ids)
    names = users.ids.to_pylist()
    assert names == sorted({e[0] for e in mine})
    assert users.events.tolist() == [sum(e[0] == name for e in mine) for name in names]
    assert users.last.to_pylist() == [at(max(e[2] for e in mine if e[0] == name)) for name in names]
    assert (pairs.users, pairs.items) == (len(names), 3)
    coded = [(names[u], catalogue[i]) for u, i in zip(pairs.user.tolist(), pairs.item.tolist(), strict=True)]
    assert coded == sorted({(e[0], e[1]) for e in mine})


def test_pairs_of_some_users_are_coded_by_their_places() -> None:
    events = [("u", "a", 0, 5.0), ("v", "a", 0, 5.0), ("w", "b", 0, 5.0)]
    with log_files(events) as files, open_log(files, POSITIVE, ["a", "b"]) as log:
        pairs = log.pairs(True, pa.array(["w", "u"]))
    assert (pairs.user.tolist(), pairs.item.tolist()) == ([0, 1], [1, 0])


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 12))
def test_parts_hold_everything_in_order_and_no_more_than_they_may(sizes: list[int], most: int) -> None:
    found = list(parts(np.array(sizes, np.int64), most))
    assert [n for part in found for n in sizes[part]] == sizes
    assert all(sum(sizes[part]) <= most or part.stop - part.start == 1 for part in found)
    assert all(sum(sizes[a.start : b.start + 1]) > most for a, b in pairwise(found))


def test_a_sample_is_of_whole_users_within_the_limit_and_grows_with_it() -> None:
    users = activity(*[3] * 50)
    small, large = (set(sample(users, most).to_pylist()) for most in (30, 90))
    assert (len(small), len(large)) == (10, 30)
    assert small < large
    assert len(sample(users, 150)) == 50
    assert len(sample(users, 1)) == 1
