"""What the pocket LLM is shown when: the stages of its training, and endless batches of lessons."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import BaseModel, Field

from demo.catalogue import Movie
from demo.group_lessons import GROUP_KINDS, MAX_NAMED, group_lesson, random_group
from demo.lessons import Lesson, item_lesson, random_history, summary_lesson
from demo.pocket_tokenizer import SPECIAL_TOKENS
from demo.shift_lessons import random_shift, random_span, shift_lesson
from prompts.render import PromptWriter
from prompts.scenario import load_scenario

# Of the groups in lessons, one in so many has a single member, which has a wording of its own.
_ONE_MEMBER_IN = 8
_MAX_MEMBERS = 250
# Pairs of summaries are short, and comparing is the hardest to learn.
_SHIFTS_PER_LESSON = 2


class Stage(BaseModel, frozen=True, extra="forbid"):
    """One part of the training, with its own optimizers; the learning rate rises and falls within it."""

    steps: int = Field(ge=1)
    # Shares of batches; what is left are lists.
    facts_share: float = Field(gt=0, lt=1)
    groups_share: float = Field(default=0.0, ge=0, lt=1)
    shifts_share: float = Field(default=0.0, ge=0, lt=1)
    # All kinds of prompt, and lists with and without their time; else facts and lists without time. The first stage
    # with it gives the new prompts' constant parts their tokens.
    repertoire: bool = False
    # Brief answers: what is liked, and four facts. Learned last, from the full ones, whose detail teaches counting.
    brief: bool = False
    # Of the peak rates below.
    rate: float = Field(default=1.0, gt=0)
    hints: bool = False
    # Share of the stage after which lists have their full lengths; 0 from the start.
    growth_until: float = Field(default=0.0, ge=0, lt=1)


def movie_writer() -> PromptWriter:
    """Prompts of the shipped scenario, as the pipeline renders them for this model."""
    return PromptWriter(load_scenario("movies"), SPECIAL_TOKENS)


class Progress:
    """How far a stage is: the share of its steps or of its minutes, whichever is larger."""

    def __init__(self, stage: Stage, minutes: float) -> None:
        self._stage, self._minutes = stage, minutes
        self._started = time.monotonic()
        self.step = 0

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self._started) / 60

    @property
    def share(self) -> float:
        return min(1.0, max(self.step / self._stage.steps, self.minutes / self._minutes))

    @property
    def rate(self) -> float:
        """Share of the peak learning rate: 50 steps of warm-up, flat, and down to nothing over the second half."""
        return self._stage.rate * min(1.0, (self.step + 1) / 50, max(0.0, (1.0 - self.share) / 0.5))

    @property
    def growth(self) -> float:
        """How far the lists have grown, 1 being their full range of lengths."""
        return min(1.0, self.share / self._stage.growth_until) if self._stage.growth_until else 1.0


def lesson_batches(
    stage: Stage, batch: int, movies: Sequence[Movie], progress: Progress, rng: np.random.Generator
) -> Iterator[tuple[str, list[Lesson]]]:
    """Endless batches: `items` (all movies in random order, again and again), `groups`, `shifts`, or `lists`."""
    writer = movie_writer()
    items = [item_lesson(writer, movie, stage.brief) for movie in movies]
    queue: list[int] = []
    kinds = ("items", "groups", "shifts")
    edges = np.cumsum([stage.facts_share, stage.groups_share, stage.shifts_share])
    while True:
        chosen = int(np.searchsorted(edges, rng.random(), side="right"))
        kind = kinds[chosen] if chosen < len(kinds) else "lists"
        if kind == "items":
            if len(queue) < batch:
                queue += rng.permutation(len(items)).tolist()
            yield kind, [items[queue.pop(0)] for _ in range(batch)]
        elif kind == "groups":
            yield kind, _group_batch(writer, batch, movies, rng)
        elif kind == "shifts":
            yield kind, _shift_batch(writer, _SHIFTS_PER_LESSON * batch, rng)
        else:
            yield kind, _list_batch(writer, stage, batch, movies, progress, rng)


def _group_batch(writer: PromptWriter, batch: int, movies: Sequence[Movie], rng: np.random.Generator) -> list[Lesson]:
    """Groups of any kind, all represented by about as many movies: most often as many as a prompt names."""
    longest = MAX_NAMED if rng.random() < 0.6 else int(rng.integers(1, MAX_NAMED + 1))
    lessons = []
    for _ in range(batch):
        kind = GROUP_KINDS[int(rng.integers(len(GROUP_KINDS)))]
        size = 1 if rng.integers(_ONE_MEMBER_IN) == 0 else int(rng.integers(2, _MAX_MEMBERS))
        named = random_group(movies, max(1, longest - int(rng.integers(3))), rng)
        lessons.append(group_lesson(writer, kind, named, size))
    return lessons


def _shift_batch(writer: PromptWriter, batch: int, rng: np.random.Generator) -> list[Lesson]:
    """Pairs of summaries that state about as much, all with their time or all without: to compare is learned from
    short ones."""
    unstated, timed = rng.uniform(0.05, 0.85), rng.random() < 0.5
    pairs = [random_shift(rng, unstated) for _ in range(batch)]
    return [shift_lesson(writer, *pair, random_span(rng) if timed else None) for pair in pairs]


def _list_batch(
    writer: PromptWriter,
    stage: Stage,
    batch: int,
    movies: Sequence[Movie],
    progress: Progress,
    rng: np.random.Generator,
) -> list[Lesson]:
    """Lists of similar lengths; in a stage of all prompts, all with their time or all without."""
    longest = list_length(progress.growth, rng)
    lengths = [max(1, longest - int(rng.integers(3))) for _ in range(batch)]
    timed = stage.repertoire and rng.random() < 0.5
    return [
        summary_lesson(writer, random_history(movies, n, rng), stage.brief, random_span(rng) if timed else None)
        for n in lengths
    ]


def list_length(growth: float, rng: np.random.Generator) -> int:
    """A random length for a batch's longest list: 1 to 4 at growth 0; at growth 1 7 to 22, now and then up to 50."""
    if growth == 1.0 and rng.random() < 0.06:
        return int(rng.integers(23, 51))
    return int(rng.integers(round(1 + 6 * growth), round(4 + 18 * growth) + 1))
