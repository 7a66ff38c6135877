"""What a lift is measured on: labelled events, and the texts about them as vectors with the time each may be used."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Self

import numpy as np

from adapters.collaborative import Side
from adapters.samples import Samples, newest_before
from warehouse.keys import DIGEST_BYTES


@dataclass(frozen=True)
class Source:
    """Texts of one kind: `vectors` [rows, d] about `entity` [rows] (codes of users, items or groups) from `valid_from`.

    `holder` [n] says whose text a sample reads: its user, its item, or its user's group. A sample reads the newest row
    with valid_from < ts.
    """

    side: Side
    vectors: np.ndarray
    entity: np.ndarray
    valid_from: np.ndarray
    holder: np.ndarray

    def rows(self, ts: np.ndarray, delay_us: int = 0) -> np.ndarray:
        """The row that each sample reads, -1 for none. int64 [n]. With a delay, texts come that much later."""
        return newest_before(self.holder, ts - delay_us, self.entity, self.valid_from, 1)[:, 0]

    def take(self, index: np.ndarray) -> Self:
        """The same texts for the samples at `index`."""
        return replace(self, holder=self.holder[index])

    def beside(self, other: Self) -> Self:
        """Texts of both sources about the same entities as one row each, [rows, d + other's d].

        A row begins whenever either has a new one, and holds zeros for a source that has none yet.
        """
        entity, since = np.concatenate([(s.entity, s.valid_from) for s in (self, other)], axis=1)
        entity, since = np.unique(np.stack([entity, since]), axis=1)
        parts = []
        for source in (self, other):
            # What holds from a moment on is part of the row that begins then.
            found = newest_before(entity, since + 1, source.entity, source.valid_from, 1)[:, 0]
            parts.append(np.where(found[:, None] >= 0, source.vectors[found], 0.0))
        return replace(self, vectors=np.concatenate(parts, axis=1, dtype=np.float32), entity=entity, valid_from=since)


@dataclass(frozen=True)
class LiftData:
    """Events in order of time and all that arms may know of them.

    `sources` by name: `facts` (item texts of the LLM), `titles` (title and attributes, no LLM), `summaries` (user texts
    of the LLM), `histories` (what the LLM was shown of a user, without its answer), `likes` and `dislikes` (texts of
    user groups). `traits` are demographics by name, codes [users]; `rungs` [n] say whose knowledge a sample has.

    `leaky` names sources whose making may have seen any event: they count in the protocol `kar` only, as published.
    """

    name: str
    samples: Samples
    sources: Mapping[str, Source]
    traits: Mapping[str, np.ndarray] = field(default_factory=dict)
    rungs: np.ndarray | None = None
    leaky: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Identity of everything that is learned from."""
        state = blake2b(self.name.encode(), digest_size=DIGEST_BYTES)
        samples = self.samples
        columns = [samples.user, samples.item, samples.ts, samples.label, samples.category]
        for source in self.sources.values():
            columns += [source.vectors, source.entity, source.valid_from, source.holder]
        for array in [*columns, *self.traits.values()]:
            state.update(str(array.shape).encode())
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()

    def of_users(self, count: int | None, seed: int = 0) -> Self:
        """The events of a random sample of `count` users; all of them for None, or where there are no more."""
        chosen = chosen_users(len(self.samples.users), count, seed)
        return self if chosen.all() else self.take(np.flatnonzero(chosen[self.samples.user]))

    def take(self, index: np.ndarray) -> Self:
        """The samples at `index`, with the same entity codes and texts."""
        return replace(
            self,
            samples=self.samples.take(index),
            sources={name: source.take(index) for name, source in self.sources.items()},
            rungs=None if self.rungs is None else self.rungs[index],
        )


def chosen_users(users: int, count: int | None, seed: int = 0) -> np.ndarray:
    """Which user codes a random sample of `count` holds, all for None. bool [users]."""
    chosen = np.zeros(users, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(users)[:count]] = True
    return chosen


def source_of(
    side: Side, vectors: np.ndarray, entity: np.ndarray, valid_from: np.ndarray, holder: np.ndarray
) -> Source:
    """A source with its rows in order of (entity, time), without those about no entity that a sample can hold (-1)."""
    order = np.lexsort((valid_from, entity))
    order = order[entity[order] >= 0]
    return Source(side, vectors[order].astype(np.float32), entity[order], valid_from[order], holder)
