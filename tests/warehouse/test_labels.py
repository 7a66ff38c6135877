import operator
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.errors import ConfigError
from warehouse.labels import parse_rule

PYTHON = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
VALUES = [-2.5, 0.0, 0.1, 1.0, 3.0, 4.5, 1e10]
ACTIONS = ["click", "it's", 'a "b" and c', "value > 3", ""]
EVENTS = pa.table(
    {
        "value": pa.array([value for value in VALUES for _ in ACTIONS], pa.float32()),
        "action": pa.array(ACTIONS * len(VALUES)),
    }
)


def as_float32(number: float) -> float:
    return float(pa.scalar(number, pa.float32()).as_py())


NUMBERS = st.sampled_from(VALUES).flatmap(
    lambda v: st.sampled_from([(f"{v}", v), (f"{v:e}", v), (f" {v} ", v)] + ([(f"+{v}", v)] if v >= 0 else []))
)
VALUE_TEST = st.tuples(st.just("value"), st.sampled_from(list(PYTHON)), NUMBERS)
ACTION_TEST = st.tuples(
    st.just("action"),
    st.sampled_from(["==", "!="]),
    st.sampled_from([(f"'{text}'" if "'" not in text else f'"{text}"', text) for text in ACTIONS]),
)


@settings(max_examples=30, deadline=None)
@given(tests=st.lists(st.one_of(VALUE_TEST, ACTION_TEST), min_size=1, max_size=3), blank=st.sampled_from(["", " "]))
def test_a_rule_means_in_arrow_and_in_sql_what_its_comparisons_mean_in_python(
    tests: list[tuple[str, str, tuple[str, Any]]], blank: str
) -> None:
    rule = parse_rule(" and ".join(f"{column}{blank}{sign}{blank}{shown}" for column, sign, (shown, _) in tests))

    def holds(event: dict[str, Any]) -> bool:
        return all(
            PYTHON[sign](event[column], as_float32(operand) if column == "value" else operand)
            for column, sign, (_, operand) in tests
        )

    expected = [holds(event) for event in EVENTS.to_pylist()]
    assert rule.arrow_mask(EVENTS).to_pylist() == expected
    with duckdb.connect() as con:
        con.register("behaviours", EVENTS)
        assert [row[0] for row in con.execute(f"SELECT {rule.sql} FROM behaviours").fetchall()] == expected


def test_a_rule_on_one_column_needs_no_other() -> None:
    assert parse_rule("value > 3").arrow_mask(EVENTS.select(["value"])).to_pylist().count(True) == 2 * len(ACTIONS)
    assert parse_rule("action == 'click'").arrow_mask(EVENTS.select(["action"])).to_pylist().count(True) == len(VALUES)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "a comparison"),
        ("value", "'value'"),
        ("value > ", "'value >'"),
        ("value > three", "three"),
        ("value = 3", "value = 3"),
        ("value > 3 or value < 1", "'or value < 1'"),
        ("value > 3 and", "a comparison"),
        ("value > 3 value < 4", "only `and`"),
        ("value > 3andvalue < 4", "3andvalue"),
        ("value > 1e300", "too large"),
        ("value > nan", "nan"),
        ("value == '3'", "a number"),
        ("action == 3", "quoted text"),
        ("action > 'click'", "== and !="),
        ("action == 'click", "'click"),
        ("rating > 3", "`rating`"),
        ("__import__('os').system('true')", "__import__"),
        ("value > 3; DROP TABLE behaviours", "; DROP"),
    ],
)
def test_anything_else_is_refused_with_its_place_and_the_grammar(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as failure:
        parse_rule(text)
    assert named in str(failure.value)
    assert repr(text) in str(failure.value)
    assert "joined by `and`" in str(failure.value)
