"""What is wrong with a row or line that is not taken in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class FaultReason(StrEnum):
    """Why something was left out; a closed set."""

    EMPTY_TEXT = "empty_text"
    UNKNOWN_ENTITY = "unknown_entity"
    MISSING_ID = "missing_id"
    MISSING_GROUP = "missing_group"
    MISSING_MODEL = "missing_model"
    WRONG_TYPE = "wrong_type"
    # The same entity, or the same call, again in one file: the first stays.
    DUPLICATE_ID = "duplicate_id"
    # No such item, no such group, or a user without a sealed partition.
    UNKNOWN_ID = "unknown_id"
    MALFORMED_LINE = "malformed_line"
    # A batch made no answer for this call; it stays to be made.
    FAILED_CALL = "failed_call"
    # A batch answers a call that was never planned here, or by another engine.
    NOT_PLANNED = "not_planned"


@dataclass(frozen=True)
class ImportFault:
    """A row (counted from 1, headers aside) that was left out: why, and which value did it."""

    row: int
    reason: FaultReason
    detail: str


def count_faults(faults: Iterable[ImportFault]) -> Mapping[str, int]:
    """How many faults have which reason, the most frequent first."""
    counts: dict[str, int] = {}
    for fault in faults:
        counts[str(fault.reason)] = counts.get(str(fault.reason), 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
