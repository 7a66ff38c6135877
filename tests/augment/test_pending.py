"""Who is paid for first, and where a budget draws the line."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.pending import choose

KINDS = ("group_likes", "user_shift", "user_summary", "item_facts")


def pending(calls: list[tuple[str, int]]) -> pa.Table:
    return pa.table(
        {
            "request_key": [f"k{n}" for n in range(len(calls))],
            "kind": pa.array([kind for kind, _ in calls], pa.string()),
            "entity_id": [f"e{n}" for n in range(len(calls))],
            "partition_no": pa.array([number for _, number in calls], pa.int32()),
            "traffic": [1.0] * len(calls),
            "staleness": [1.0] * len(calls),
            "uncertainty": [1.0] * len(calls),
            "priority": [float(len(calls) - n) for n in range(len(calls))],
        }
    )


def granted(calls: list[tuple[str, int]], cascade: bool, calls_left: int | None, tokens_left: int | None) -> int:
    """The oracle: pay one after the other until somebody cannot be paid for."""
    for n, (kind, number) in enumerate(calls):
        price = 2 if cascade and kind == "user_summary" and number > 0 else 1
        tokens = 30 * (price if kind == "user_summary" else 1)
        if calls_left is not None:
            calls_left -= price
        if tokens_left is not None:
            tokens_left -= tokens
        if (calls_left is not None and calls_left < 0) or (tokens_left is not None and tokens_left < 0):
            return n
    return len(calls)


@given(
    calls=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2)), max_size=12),
    cascade=st.booleans(),
    calls_left=st.none() | st.integers(0, 15),
    tokens_left=st.none() | st.integers(0, 500),
)
def test_the_longest_prefix_that_can_be_paid_for_is_granted(
    calls: list[tuple[str, int]], cascade: bool, calls_left: int | None, tokens_left: int | None
) -> None:
    table = pending(calls)
    choice = choose(table, cascade, dict.fromkeys(KINDS, 30.0), calls_left, tokens_left)
    assert choice.granted.num_rows == granted(calls, cascade, calls_left, tokens_left)
    assert pa.concat_tables([choice.granted, choice.waiting]) == table


def test_a_choice_names_the_last_who_is_paid_for_and_the_first_who_is_not() -> None:
    table = pending([("group_likes", 0), ("item_facts", 0), ("item_facts", 0), ("user_summary", 0)])
    said = choose(table, False, dict.fromkeys(KINDS, 1.0), 2, None).explained()
    assert said["kinds"] == {
        "group_likes": {"granted": 1, "waiting": 0},
        "item_facts": {"granted": 1, "waiting": 1},
        "user_summary": {"granted": 0, "waiting": 1},
    }
    assert (said["last_granted"]["entity_id"], said["first_waiting"]["entity_id"]) == ("e1", "e2")  # type: ignore[index]


@pytest.mark.parametrize("left", [0, 1, 5])
def test_without_a_call_there_is_nothing_to_choose(left: int) -> None:
    choice = choose(pending([]), True, {}, left, None)
    assert (choice.granted.num_rows, choice.waiting.num_rows, choice.explained()) == (0, 0, {"kinds": {}})
