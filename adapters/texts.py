"""The single texts behind users' vectors: what an attention over partitions reads where a mean would read one vector.

A row of a user's features may use the partitions sealed up to it, and no later one. Partitions of a user lie together
in order of time, so a row's are a range of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class UserTexts:
    """Texts, the partitions they are about, and which of these each of n rows may use.

    `vectors` [t, d] are embeddings of texts. Of partition j, `summary` and `shift` [m] index them, -1 where there is
    none, and `sealed` [m] says when it ended. Row r may use the partitions from `first[r]` up to, not including,
    `last[r]`, and `at[r]` is the time that their age is counted to. Times are microseconds since 1970.
    """

    vectors: np.ndarray
    summary: np.ndarray
    shift: np.ndarray
    sealed: np.ndarray
    first: np.ndarray
    last: np.ndarray
    at: np.ndarray

    @classmethod
    def single(cls, vectors: np.ndarray, at: np.ndarray | None = None) -> Self:
        """Rows of which each vector [n, d] is the only text, a summary of age 0."""
        rows = np.arange(len(vectors), dtype=np.int64)
        times = np.zeros(len(vectors), np.int64) if at is None else at
        return cls(vectors, rows, np.full(len(vectors), -1, np.int64), times, rows, rows + 1, times)

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: np.ndarray) -> Self:
        """The rows at these positions, over the same partitions."""
        return type(self)(
            self.vectors, self.summary, self.shift, self.sealed, self.first[rows], self.last[rows], self.at[rows]
        )

    def extend(self, other: Self) -> Self:
        """The rows of both, `other`'s after these."""
        texts, partitions = len(self.vectors), len(self.summary)

        def both(name: str, moved: int = 0) -> np.ndarray:
            mine, added = getattr(self, name), getattr(other, name)
            return np.concatenate([mine, np.where(added >= 0, added + moved, added)])

        return type(self)(
            vectors=np.concatenate([self.vectors, other.vectors]),
            summary=both("summary", texts),
            shift=both("shift", texts),
            sealed=both("sealed"),
            first=both("first", partitions),
            last=both("last", partitions),
            at=both("at"),
        )


class Partitions(NamedTuple):
    """Padded partitions of b users, at most p each: what `InterestFusion` takes, in its order.

    `summary`, `shift` [b, p, d] (`shift` None where nobody has one), `has_summary`, `has_shift` [b, p], `age_days`
    [b, p]. What stands where there is nothing has no meaning.
    """

    summary: Tensor
    shift: Tensor | None
    has_summary: Tensor
    has_shift: Tensor
    age_days: Tensor


class TextTensors:
    """`texts` on a device, their vectors mapped by `norm` once; `gather` pads what a batch of rows may use."""

    def __init__(self, texts: UserTexts, norm: Callable[[Tensor], Tensor], device: str) -> None:
        with torch.no_grad():
            vectors = norm(torch.from_numpy(np.array(texts.vectors, np.float32)).to(device))
        # A place that padding may point at, where there is no text or no partition at all.
        self.vectors = vectors if len(vectors) else vectors.new_zeros(1, vectors.shape[1])
        partitions = (np.append(texts.summary, -1), np.append(texts.shift, -1), np.append(texts.sealed, 0))
        columns = (*partitions, texts.first, texts.last, texts.at)
        tensors = [torch.from_numpy(np.array(column, np.int64)).to(device) for column in columns]
        self.summary, self.shift, self.sealed, self.first, self.last, self.at = tensors
        self.has_shifts = bool((texts.shift >= 0).any())

    def __len__(self) -> int:
        return len(self.first)

    def used(self) -> np.ndarray:
        """Positions in `vectors` of the texts that at least one row may use, ascending. int64 [n]."""
        # How many rows use a partition, out of where their ranges begin and end.
        changes = torch.zeros_like(self.sealed)
        one = torch.ones_like(self.first)
        changes.index_add_(0, self.first, one).index_add_(0, self.last, one, alpha=-1)
        partitions = changes.cumsum(0) > 0
        texts = np.unique(torch.cat([self.summary[partitions], self.shift[partitions]]).cpu().numpy())
        return np.asarray(texts[texts >= 0])

    def gather(self, rows: Tensor, length: int | None = None) -> Partitions:
        """The partitions of `rows` [b], oldest first, padded behind to the longest or to `length`."""
        first, last = self.first[rows], self.last[rows]
        if length is None:
            length = max(1, int((last - first).max())) if len(rows) else 1
        place = first[:, None] + torch.arange(length, device=first.device)
        inside = place < last[:, None]
        place = torch.where(inside, place, 0)
        summary, shift = (torch.where(inside, column[place], -1) for column in (self.summary, self.shift))
        age = torch.where(inside, self.at[rows][:, None] - self.sealed[place], 0)
        return Partitions(
            summary=self.vectors[summary.clamp(min=0)],
            shift=self.vectors[shift.clamp(min=0)] if self.has_shifts else None,
            has_summary=summary >= 0,
            has_shift=shift >= 0,
            age_days=age.double().div(DAY_US).float(),
        )
