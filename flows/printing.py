"""What commands print: results to standard output, as JSON or as a table of names and values; all else elsewhere."""

import atexit
import json as json_text
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


def log_to_stderr(level: int) -> None:
    """Show this project's log from `level` on, and other libraries' warnings, on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("lorestream").setLevel(level)


def hush_exit() -> None:
    """Drop what is printed after this: at exit DuckDB's bindings list all objects that Prefect still holds."""
    sys.stdout.flush()
    sys.stderr.flush()
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


@contextmanager
def results_only(quiet: bool) -> Iterator[TextIO]:
    """The real standard output, while everything that libraries print to it goes to standard error.

    vLLM and its child processes write to file descriptor 1 directly, so the descriptor itself is moved.
    """
    log_to_stderr(logging.WARNING if quiet else logging.INFO)
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as out:
            yield out
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def print_result(result: dict[str, object], as_json: bool, text: Callable[[], str] | None = None) -> None:
    write_result(sys.stdout, result, as_json, text)


def write_result(out: TextIO, result: dict[str, object], as_json: bool, text: Callable[[], str] | None = None) -> None:
    if as_json:
        out.write(json_text.dumps(result, default=str) + "\n")
    elif text is not None:
        out.write(text() + "\n")
    else:
        out.write(_table(result) + "\n")


def _table(result: dict[str, object], indent: str = "") -> str:
    """Names and values in two columns; nested mappings indented, lists one entry a line."""
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{name.replace('_', ' ')}:")
            lines.append(_table(value, indent + "  ") if value else f"{indent}  none")
        elif isinstance(value, list):
            lines.append(f"{indent}{name.replace('_', ' ')}:" + ("" if value else " none"))
            lines.extend(f"{indent}  {_inline(entry)}" for entry in value)
        else:
            lines.append(f"{indent}{name.replace('_', ' '):<{26 - len(indent)}} {_inline(value)}")
    return "\n".join(lines)


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{k}={v}" for k, v in value.items())
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)
