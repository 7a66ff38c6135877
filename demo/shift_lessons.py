"""Lessons about change (LIBER): what the current summary likes that the one before it does not, and when that was."""

from collections.abc import Mapping
from datetime import timedelta

import numpy as np

from demo.catalogue import END, START
from demo.lessons import SUMMARY_FACTORS, VALUES, Lesson, said, stated
from demo.wording import LIKES, NEW, NO_PREFERENCE, NOTHING_NEW
from prompts.render import PromptWriter, Span

# Factor -> value liked, None where a summary states none.
Liked = Mapping[str, str | None]

# Of random pairs, the share with the same two summaries.
_UNCHANGED = 0.1


def new_values(previous: Liked, current: Liked) -> dict[str, str | None]:
    """The rule that defines a right answer: per factor the current value, where the previous one is not the same."""
    return {f: None if current[f] == previous[f] else current[f] for f in SUMMARY_FACTORS}


def shift_lesson(writer: PromptWriter, previous: Liked, current: Liked, span: Span | None = None) -> Lesson:
    """The prompt that shows both as brief summaries, and what is new in the current one."""
    earlier, later = (said(LIKES, values, NO_PREFERENCE) for values in (previous, current))
    answer = said(NEW, new_values(previous, current), NOTHING_NEW)
    return Lesson(writer.user_shift(earlier, later, span), answer, summaries=(previous, current))


def shift_steps(previous: Liked, current: Liked) -> np.ndarray:
    """[sentences, 2 * factors + 1] int64: what the two summaries' sentences show up to each of them.

    The columns are the value numbers of what is new so far, those of what the previous summary said so far (the number
    after the last is none), and whether the sentence itself is new. A summary that states nothing is one sentence.
    """
    new, rows = new_values(previous, current), []
    ends = np.array([len(VALUES[factor]) for factor in SUMMARY_FACTORS] * 2 + [0])
    row = ends.copy()
    for values, first, shown in ((previous, len(SUMMARY_FACTORS), previous), (current, 0, new)):
        stated = [(n, factor) for n, factor in enumerate(SUMMARY_FACTORS) if values[factor] is not None]
        for n, factor in stated:
            value = shown[factor]
            row[-1] = first == 0 and value is not None
            if value is not None:
                row[first + n] = VALUES[factor].index(value)
            rows.append(row.copy())
        if not stated:
            row[-1] = 0
            rows.append(row.copy())
    return np.stack(rows)


def stated_new(answer: str, factor: str) -> str | None:
    """The value of a factor that an answer states as new; None where it states none, or several."""
    return stated(NEW, answer, factor)


def random_shift(
    rng: np.random.Generator, unstated: float = 0.1
) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """What two summaries like: anything from wholly different to the same; `unstated` is the share without a value."""
    previous = {factor: _draw(factor, unstated, rng) for factor in SUMMARY_FACTORS}
    kept = 1.0 if rng.random() < _UNCHANGED else rng.random()
    return previous, {f: previous[f] if rng.random() < kept else _draw(f, unstated, rng) for f in SUMMARY_FACTORS}


def _draw(factor: str, unstated: float, rng: np.random.Generator) -> str | None:
    values = VALUES[factor]
    return None if rng.random() < unstated else values[int(rng.integers(len(values)))]


def random_span(rng: np.random.Generator) -> Span:
    """When a partition may have been: in the world's time, of a day to two years, with or without one before it."""
    days = min(float(np.exp(rng.uniform(-1.0, 6.5))), (END - START) / timedelta(days=1))
    opened = START + (END - START - timedelta(days=days)) * float(rng.random())
    # Now and then late events make two partitions overlap.
    gap = -1.0 if rng.random() < 0.05 else float(np.exp(rng.uniform(-2.0, 5.0)))
    return Span(opened, opened + timedelta(days=days), None if rng.random() < 0.3 else opened - timedelta(days=gap))
