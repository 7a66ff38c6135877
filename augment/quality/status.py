"""What the quality gate can say of a text."""

from enum import StrEnum


class Status(StrEnum):
    """Whether a text may become a vector; every one but `ok` is kept and counted, and not encoded."""

    OK = "ok"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    REPETITIVE = "repetitive"
    OFF_TOPIC = "off_topic"
    LEAKED_PROMPT = "leaked_prompt"
