"""How often the pocket LLM is right: greedy answers to the demo world's own prompts, checked against the rules."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.catalogue import Movie
from demo.lessons import (
    SUMMARY_FACTORS,
    VALUES,
    item_lesson,
    preference,
    scores,
    stated_facts,
    stated_like,
    summary_lesson,
)
from demo.pocket_training import movie_writer
from demo.wording import BRIEF_FACTS
from demo.world import World

# The demo's partition sizes; the last one repeats.
PARTITION_SIZES = (10, 20)
MAX_NEW_TOKENS = 160


class PreferenceScore(BaseModel, frozen=True, extra="forbid"):
    """One factor of the summaries; every number is a share of the lists.

    `exact`: what is stated equals the rule's answer, `none` included. `best`: it does, or a value with an equally high
    sum is stated. `chance`: what always stating the rule's most common answer would reach.
    """

    exact: float
    best: float
    chance: float


class Accuracy(BaseModel, frozen=True, extra="forbid"):
    """How often answers are right. `items` are shares of answers, per factor."""

    items_asked: int
    items: dict[str, float]
    items_chance: dict[str, float]
    items_whole: float
    lists_asked: int
    likes: dict[str, PreferenceScore]
    # Share of all answers that end by themselves.
    ended: float
    tokens_per_item: float
    tokens_per_summary: float


@dataclass(frozen=True)
class Answer:
    """Text and number of tokens of one answer; `ended` is False where it ran into the limit."""

    text: str
    tokens: int
    ended: bool


class PocketChat:
    """The model in a folder, asked through plain transformers, greedily; nothing is fetched from anywhere."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    def ask(self, prompts: Sequence[str], batch: int = 64) -> list[Answer]:
        """One answer per prompt, in order."""
        answers: list[Answer] = []
        end = self._tokenizer.eos_token_id
        for start in range(0, len(prompts), batch):
            turns = [
                self._tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
                for prompt in prompts[start : start + batch]
            ]
            inputs = self._tokenizer(turns, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                out = self._model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=MAX_NEW_TOKENS,
                    do_sample=False,
                )
            for ids in out[:, inputs["input_ids"].shape[1] :].tolist():
                said = ids[: ids.index(end)] if end in ids else ids
                answers.append(Answer(self._tokenizer.decode(said), len(said), end in ids))
        return answers


def partition_lists(world: World, limit: int, seed: int) -> list[list[tuple[Movie, int]]]:
    """At most `limit` of the users' full partitions, drawn at random: movies and stars, oldest first."""
    movies = {movie.item_id: movie for movie in world.movies}
    streams: dict[str, list[tuple[Movie, int]]] = {}
    for event in world.events:
        streams.setdefault(event.user_id, []).append((movies[event.item_id], event.stars))
    lists = []
    for stream in streams.values():
        start, number = 0, 0
        while start + (size := PARTITION_SIZES[min(number, len(PARTITION_SIZES) - 1)]) <= len(stream):
            lists.append(stream[start : start + size])
            start, number = start + size, number + 1
    picks = np.random.default_rng(seed).permutation(len(lists))[:limit]
    return [lists[pick] for pick in picks]


def evaluate(chat: PocketChat, world: World, lists: int = 400, items: int | None = None, seed: int = 11) -> Accuracy:
    """How often the model is right about the catalogue's items (the first `items`, or all) and the users' lists."""
    writer = movie_writer()
    movies = world.movies[:items]
    facts = chat.ask([item_lesson(writer, movie).prompt for movie in movies])
    right = {
        factor: [
            stated_facts(answer.text, factor) == {movie.hidden[factor]}
            for answer, movie in zip(facts, movies, strict=True)
        ]
        for factor in BRIEF_FACTS
    }
    histories = partition_lists(world, lists, seed)
    summaries = chat.ask([summary_lesson(writer, history).prompt for history in histories])
    texts = [answer.text for answer in summaries]
    return Accuracy(
        items_asked=len(movies),
        items={factor: _share(hits) for factor, hits in right.items()},
        items_chance={factor: _most_common([m.hidden[factor] for m in movies]) for factor in BRIEF_FACTS},
        items_whole=_share([all(hits) for hits in zip(*right.values(), strict=True)]),
        lists_asked=len(histories),
        likes={factor: _score(texts, histories, factor) for factor in SUMMARY_FACTORS},
        ended=_share([answer.ended for answer in (*facts, *summaries)]),
        tokens_per_item=float(np.mean([answer.tokens for answer in facts])),
        tokens_per_summary=float(np.mean([answer.tokens for answer in summaries])),
    )


def _score(texts: Sequence[str], histories: Sequence[Sequence[tuple[Movie, int]]], factor: str) -> PreferenceScore:
    exact, best, truths = [], [], []
    for text, history in zip(texts, histories, strict=True):
        truth, said = preference(history, factor).likes, stated_like(text, factor)
        totals = scores(history, factor)
        tie = said is not None and truth is not None and totals[VALUES[factor].index(said)] == totals.max()
        truths.append(truth)
        exact.append(said == truth)
        best.append(said == truth or tie)
    return PreferenceScore(exact=_share(exact), best=_share(best), chance=_most_common(truths))


def _share(hits: Sequence[bool]) -> float:
    return round(float(np.mean(hits)), 4) if hits else 0.0


def _most_common(values: Sequence[str | None]) -> float:
    return round(Counter(values).most_common(1)[0][1] / len(values), 4) if values else 0.0
