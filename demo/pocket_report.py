"""How often the pocket LLM is right: greedy answers to the demo world's own prompts, checked against the rules."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel

from demo.catalogue import Movie
from demo.group_lessons import common, counts, group_factors, group_lesson, stated_common
from demo.lessons import (
    SUMMARY_FACTORS,
    VALUES,
    Lesson,
    item_lesson,
    preference,
    scores,
    stated_facts,
    stated_like,
    summary_lesson,
)
from demo.pocket_batches import movie_writer
from demo.pocket_chat import PocketChat
from demo.pocket_questions import Group, History, Partition, groups, partitions
from demo.shift_lessons import new_values, shift_lesson, stated_new
from demo.wording import BRIEF_FACTS
from demo.world import World
from prompts.render import Kind


class Score(BaseModel, frozen=True, extra="forbid"):
    """One factor of one kind of answer; every number is a share of the answers.

    `exact`: what is stated equals the rule's answer, `none` included. `best`: it does, or a value that the list shows
    as strongly is stated. `chance`: what always stating the rule's most common answer would reach.
    """

    exact: float
    best: float
    chance: float


class FactsAccuracy(BaseModel, frozen=True, extra="forbid"):
    """Facts of movies; shares of the answers per factor, and `whole` with all factors right."""

    asked: int
    tokens: float
    right: dict[str, float]
    chance: dict[str, float]
    whole: float


class SummaryAccuracy(BaseModel, frozen=True, extra="forbid"):
    """Summaries of the same partitions without the line about time and with it."""

    asked: int
    tokens: float
    plain: dict[str, Score]
    timed: dict[str, Score]


class ShiftAccuracy(BaseModel, frozen=True, extra="forbid"):
    """What is new in a partition by the rule's summaries of it and of the one before it.

    `repeating` is what stating all of the current summary would reach. The two ways to be right apart: of the values
    that are new the share that is stated, of those that both summaries state the share that is left out.
    """

    asked: int
    tokens: float
    factors: dict[str, Score]
    repeating: dict[str, float]
    new_values: int
    new_stated: float
    same_values: int
    same_left_out: float


class GroupAccuracy(BaseModel, frozen=True, extra="forbid"):
    """What the movies have in common that stand for groups of one kind."""

    asked: int
    tokens: float
    factors: dict[str, Score]


class Accuracy(BaseModel, frozen=True, extra="forbid"):
    """How often answers are right, and the share of them that `ended` by themselves; `tokens` are mean lengths."""

    facts: FactsAccuracy
    summaries: SummaryAccuracy
    shifts: ShiftAccuracy
    # By kind.
    groups: dict[str, GroupAccuracy]
    ended: float


def evaluate(chat: PocketChat, world: World, lists: int = 400, items: int | None = None, seed: int = 11) -> Accuracy:
    """How often the model is right about the catalogue's items (the first `items`, or all), at most `lists` of the
    users' partitions, and at most as many groups of each kind."""
    examiner = _Examiner(chat)
    asked = partitions(world, lists, seed)
    return Accuracy(
        facts=examiner.facts(world.movies[:items]),
        summaries=examiner.summaries(asked),
        shifts=examiner.shifts([partition for partition in asked if partition.previous is not None]),
        groups={str(kind): examiner.groups(kind, named) for kind, named in groups(world, lists, seed).items()},
        ended=_share(examiner.ended),
    )


def liked(history: History) -> dict[str, str | None]:
    """What a list shows as liked, by the rule, per factor."""
    return {factor: preference(history, factor).likes for factor in SUMMARY_FACTORS}


class _Examiner:
    """Asks, and keeps of every answer whether it ended by itself."""

    def __init__(self, chat: PocketChat) -> None:
        self._chat, self._writer = chat, movie_writer()
        self.ended: list[bool] = []

    def _ask(self, lessons: Sequence[Lesson]) -> tuple[list[str], float]:
        """The answers' texts, and how many tokens they have on average."""
        answers = self._chat.ask([lesson.prompt for lesson in lessons])
        self.ended += [answer.ended for answer in answers]
        return [answer.text for answer in answers], float(np.mean([answer.tokens for answer in answers] or [0]))

    def facts(self, movies: Sequence[Movie]) -> FactsAccuracy:
        texts, tokens = self._ask([item_lesson(self._writer, movie) for movie in movies])
        pairs = list(zip(movies, texts, strict=True))
        right = {f: [stated_facts(text, f) == {movie.hidden[f]} for movie, text in pairs] for f in BRIEF_FACTS}
        return FactsAccuracy(
            asked=len(movies),
            tokens=tokens,
            right={factor: _share(hits) for factor, hits in right.items()},
            chance={factor: _most_common([movie.hidden[factor] for movie in movies]) for factor in BRIEF_FACTS},
            whole=_share([all(hits) for hits in zip(*right.values(), strict=True)]),
        )

    def summaries(self, asked: Sequence[Partition]) -> SummaryAccuracy:
        plain, tokens = self._ask([summary_lesson(self._writer, p.history) for p in asked])
        timed, _ = self._ask([summary_lesson(self._writer, p.history, span=p.span) for p in asked])
        histories = [partition.history for partition in asked]
        return SummaryAccuracy(
            asked=len(asked), tokens=tokens, plain=_likes(plain, histories), timed=_likes(timed, histories)
        )

    def shifts(self, asked: Sequence[Partition]) -> ShiftAccuracy:
        pairs = [(liked(p.previous or []), liked(p.history), p.span) for p in asked]
        texts, tokens = self._ask([shift_lesson(self._writer, *pair) for pair in pairs])
        # Per factor: the rule's answer, the model's, and what the current summary states.
        found = {
            factor: [
                (new_values(previous, current)[factor], stated_new(text, factor), current[factor])
                for (previous, current, _), text in zip(pairs, texts, strict=True)
            ]
            for factor in SUMMARY_FACTORS
        }
        everything = [triple for triples in found.values() for triple in triples]
        new = [told == value for value, told, _ in everything if value is not None]
        same = [told is None for value, told, current in everything if value is None and current is not None]
        return ShiftAccuracy(
            asked=len(asked),
            tokens=tokens,
            factors={f: _score([(value, told) for value, told, _ in triples]) for f, triples in found.items()},
            repeating={f: _share([value == now for value, _, now in triples]) for f, triples in found.items()},
            new_values=len(new),
            new_stated=_share(new),
            same_values=len(same),
            same_left_out=_share(same),
        )

    def groups(self, kind: Kind, named: Sequence[Group]) -> GroupAccuracy:
        texts, tokens = self._ask([group_lesson(self._writer, kind, group.movies, group.size) for group in named])
        pairs = list(zip(named, texts, strict=True))
        return GroupAccuracy(
            asked=len(named),
            tokens=tokens,
            factors={
                factor: _score(
                    [(common(group.movies, factor), stated_common(kind, text, factor)) for group, text in pairs],
                    [_as_strong(factor, counts(group.movies, factor)) for group in named],
                )
                for factor in group_factors(kind)
            },
        )


def _likes(texts: Sequence[str], histories: Sequence[History]) -> dict[str, Score]:
    return {
        factor: _score(
            [
                (preference(h, factor).likes, stated_like(text, factor))
                for h, text in zip(histories, texts, strict=True)
            ],
            [_as_strong(factor, scores(history, factor)) for history in histories],
        )
        for factor in SUMMARY_FACTORS
    }


def _as_strong(factor: str, totals: np.ndarray) -> Callable[[str], bool]:
    """Whether a list shows a value as strongly as any other."""
    return lambda value: bool(totals[VALUES[factor].index(value)] == totals.max())


def _score(
    pairs: Sequence[tuple[str | None, str | None]], as_strong: Sequence[Callable[[str], bool]] | None = None
) -> Score:
    """The score of (rule's value, stated value) pairs; without `as_strong` only the rule's value is right."""
    exact = [truth == said for truth, said in pairs]
    best = exact
    if as_strong is not None:
        best = [
            truth == said or (truth is not None and said is not None and strong(said))
            for (truth, said), strong in zip(pairs, as_strong, strict=True)
        ]
    return Score(exact=_share(exact), best=_share(best), chance=_most_common([truth for truth, _ in pairs]))


def _share(hits: Sequence[bool]) -> float:
    return round(float(np.mean(hits)), 4) if hits else 0.0


def _most_common(values: Sequence[str | None]) -> float:
    return round(Counter(values).most_common(1)[0][1] / len(values), 4) if values else 0.0
