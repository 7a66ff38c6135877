"""Progress on a terminal: one bar that all stages share, and nothing at all where nobody watches."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class StageProgress:
    """Bars on standard error, made when a stage first reports; silent unless `shown`."""

    def __init__(self, bars: Progress | None) -> None:
        self._bars = bars
        self._tasks: dict[str, int] = {}

    def update(self, stage: str, done: int, total: int, rate: float, unit: str) -> None:
        """Show that `done` of `total` are finished, at `rate` of `unit` per second."""
        if self._bars is None:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total, rate=f"{rate:,.0f} {unit}/s")  # type: ignore[arg-type]


@contextmanager
def stage_progress() -> Iterator[StageProgress]:
    """A StageProgress whose bars live as long as the block; without a terminal it says nothing."""
    if not sys.stderr.isatty():
        yield StageProgress(None)
        return
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield StageProgress(bars)
