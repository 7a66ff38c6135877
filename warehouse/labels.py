"""What counts as a positive event: rules such as `value > 3`, parsed from a tiny grammar, never evaluated as code.

rule       = comparison { "and" comparison }
comparison = "value" ( ">" | ">=" | "<" | "<=" | "==" | "!=" ) number
           | "action" ( "==" | "!=" ) ( "'" text "'" | '"' text '"' )
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from warehouse.errors import ConfigError
from warehouse.sql import quote

_COMPARE: Final[Mapping[str, Callable[..., pa.ChunkedArray]]] = {
    ">": pc.greater,
    ">=": pc.greater_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
}
_EQUALITY = ("==", "!=")
_COMPARISON = re.compile(
    r"\s*(?P<column>[A-Za-z_]\w*)\s*(?P<operator>>=|<=|==|!=|>|<)\s*"
    r"(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])|'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\")\s*"
)
_AND = re.compile(r"and\b", re.IGNORECASE)
_FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class Comparison:
    """One test of a rule: `column` is `value` with a number, or `action` with a text."""

    column: str
    operator: str
    operand: float | str

    @property
    def sql(self) -> str:
        """The comparison as SQL over the columns of `behaviours`."""
        if isinstance(self.operand, str):
            return f"action {self.operator} {quote(self.operand)}"
        # `value` is float32: 0.1 there is not the 0.1 of a double.
        return f"value {self.operator} CAST({self.operand!r} AS FLOAT)"

    def arrow_mask(self, table: pa.Table) -> pa.ChunkedArray:
        """Where the comparison holds, bool by row of `table`."""
        kind = pa.string() if isinstance(self.operand, str) else pa.float32()
        return _COMPARE[self.operator](table[self.column].cast(kind), pa.scalar(self.operand, kind))


@dataclass(frozen=True)
class LabelRule:
    """A rule that tells positive events (all comparisons hold) from negative ones."""

    text: str
    comparisons: tuple[Comparison, ...]

    @property
    def sql(self) -> str:
        """The rule as a boolean SQL expression over the columns of `behaviours`."""
        return "(" + " AND ".join(comparison.sql for comparison in self.comparisons) + ")"

    def arrow_mask(self, table: pa.Table) -> pa.ChunkedArray:
        """Where the rule holds, bool by row of `table` (columns of BEHAVIOURS that the rule names)."""
        mask = self.comparisons[0].arrow_mask(table)
        for comparison in self.comparisons[1:]:
            mask = pc.and_(mask, comparison.arrow_mask(table))
        return mask


def parse_rule(text: str) -> LabelRule:
    """The rule that `text` spells. Raises ConfigError with the place of the first thing the grammar does not have."""
    comparisons: list[Comparison] = []
    place = 0
    while True:
        match = _COMPARISON.match(text, place)
        if match is None:
            raise _not_a_rule(text, place, "a comparison is expected there")
        comparisons.append(_comparison(text, match))
        place = match.end()
        if place == len(text):
            return LabelRule(text, tuple(comparisons))
        conjunction = _AND.match(text, place)
        if conjunction is None:
            raise _not_a_rule(text, place, "only `and` can follow a comparison")
        place = conjunction.end()


def _comparison(text: str, match: re.Match[str]) -> Comparison:
    column, operator, number = match["column"], match["operator"], match["number"]
    if column == "value" and number is not None:
        operand = float(number)
        if abs(operand) > _FLOAT32_MAX:
            raise _not_a_rule(text, match.start("number"), "the number is too large for `value` (float32)")
        return Comparison(column, operator, operand)
    if column == "action" and number is None:
        if operator not in _EQUALITY:
            raise _not_a_rule(text, match.start("operator"), "a text can only be compared with == and !=")
        return Comparison(column, operator, match["single"] if match["single"] is not None else match["double"])
    if column in {"value", "action"}:
        raise _not_a_rule(text, match.start("column"), "`value` is compared with a number, `action` with a quoted text")
    raise _not_a_rule(text, match.start("column"), f"there is no column `{column}`")


def _not_a_rule(text: str, place: int, why: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is not a label rule: at {text[place:].strip()[:30]!r}, {why}. Write comparisons joined by `and`: "
        "`value` with >, >=, <, <=, == or != and a number, or `action` with == or != and a quoted text, "
        "for example: value > 3 and action == 'rate'."
    )
