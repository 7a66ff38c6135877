"""Fusion of a user's partition embeddings into one vector: a learned attention (LIBER), or the plain mean.

LIBER (arXiv 2411.14713) summarises every partition of a long history and asks what is new in it; its interest fusion
attends over the partitions' texts.
"""

import numpy as np
import torch
from torch import Tensor, nn

from adapters.versions import versioned
from warehouse.errors import ConfigError, InputError

# Rows summed at once: their float64 working copy (1024 x 384 is 3 MB) stays in the processor's cache.
BLOCK_ROWS = 1024

# Of the layout of state dicts.
STATE_VERSION = 1


class InterestFusion(nn.Module):
    """LIBER's interest fusion: one vector per user out of the texts of the user's partitions, by masked attention.

    Inputs, for b users with at most p partitions each and texts as vectors of d numbers:

        summary, shift         [b, p, d]   what a partition's two texts say; `shift` may be None
        has_summary, has_shift [b, p]      which of them there are; what stands elsewhere is not read, nan included
        age_days               [b, p]      time since the partition was sealed
        candidate              [b, c]      of the item in question, for a query of its own (joint mode)
        has_candidate          [b]         rows without one use the self query

    Outputs: fused [b, d], and known [b] (1.0 or 0.0). A user with no text at all has the learned null vector and 0.

    Every text is a token j, of partition k(j) and type t(j) (summary or shift). With phi the age's encoding, a decay
    per half-life H_m of (1, 7, 30, 90, 365, 1460) days, and n_k the number of texts that partition k has:

        phi_m(age) = 2^(-age / H_m)                                          in [0, 1]^6
        key_j      = K x_j + e_t(j) + A phi(age_k(j))                        in R^attention
        x_mean     = mean over partitions with a text of (mean of the partition's texts)
        query      = Q x_mean + q               without candidate (self query), or
                     C candidate + c            with one
        alpha      = softmax over j of (query . key_j / sqrt(attention) - ln n_k(j))
        fused      = sum_j alpha_j ((1 + g_t(j)) * x_j + o_t(j))

    The queries, g and o begin at zero, so training begins at x_mean and leaves it as far as that pays: with zero scores
    alpha_j is 1 / (n_k P) for P partitions. `attention=None` has no weights but the null vector, and gives x_mean.
    Order enters by age only: partitions of equal age may be exchanged. What no source says of LIBER's layer (query,
    widths, order, how summary and shift meet) is our choice.

    Raises ConfigError for widths below 1 or a query that fits no candidate, InputError for inputs of other shapes.
    """

    HALF_LIVES_DAYS = (1.0, 7.0, 30.0, 90.0, 365.0, 1460.0)

    half_lives: Tensor

    def __init__(self, dim: int, *, attention: int | None = 32, candidate_dim: int | None = None) -> None:
        super().__init__()
        for name, width in (("dim", dim), ("attention", attention), ("candidate_dim", candidate_dim)):
            if width is not None and width < 1:
                raise ConfigError(f"A fusion's widths are at least 1: {name}={width}.")
        if attention is None and candidate_dim is not None:
            raise ConfigError(f"A mean asks no query: candidate_dim={candidate_dim} needs `attention` to be a width.")
        self.dim, self.attention, self.candidate_dim = dim, attention, candidate_dim
        self.null = nn.Parameter(torch.zeros(dim))
        self.register_buffer("half_lives", torch.tensor(self.HALF_LIVES_DAYS), persistent=False)
        if attention is not None:
            self.key = nn.Linear(dim, attention, bias=False)
            self.age_key = nn.Linear(len(self.HALF_LIVES_DAYS), attention, bias=False)
            self.type_key = nn.Parameter(torch.zeros(2, attention))
            self.self_query = nn.Linear(dim, attention)
            self.candidate_query = None if candidate_dim is None else nn.Linear(candidate_dim, attention)
            self.gain = nn.Parameter(torch.zeros(2, dim))
            self.offset = nn.Parameter(torch.zeros(2, dim))
            for layer in (self.key, self.age_key):
                nn.init.xavier_normal_(layer.weight)
            for query in (self.self_query, self.candidate_query):
                if query is not None:
                    nn.init.zeros_(query.weight)
                    nn.init.zeros_(query.bias)
        versioned(self, STATE_VERSION)

    def forward(
        self,
        summary: Tensor,
        shift: Tensor | None,
        has_summary: Tensor,
        has_shift: Tensor,
        age_days: Tensor,
        candidate: Tensor | None = None,
        has_candidate: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        self._check(summary, shift, has_summary, has_shift, age_days, candidate)
        texts, has = [summary], [has_summary]
        if shift is not None:
            texts, has = [summary, shift], [has_summary, has_shift]
        known = torch.stack(has, dim=2)
        # Not a product with the mask: what stands where there is nothing may be nan.
        x = torch.where(known[..., None], torch.stack(texts, dim=2), 0.0)
        any_text = known.flatten(1).any(dim=1)
        count = known.sum(dim=2, keepdim=True)
        prior = known / count.clamp(min=1)
        mean = torch.einsum("bpt,bptd->bd", prior, x) / (count > 0).sum(dim=1).clamp(min=1)
        fused = mean
        if self.attention is not None:
            query = self._query(mean, candidate, has_candidate)
            age = torch.where(known.any(dim=2), age_days, 0.0).clamp(min=0.0)
            decay = torch.exp2(-age[..., None] / self.half_lives)
            keys = self.key(x) + self.type_key[: len(has)] + self.age_key(decay)[:, :, None]
            scores = torch.einsum("ba,bpta->bpt", query, keys) / self.attention**0.5 - count.clamp(min=1).log()
            # A row without any text gets finite scores, and its result is replaced below.
            scores = scores.masked_fill(~known & any_text[:, None, None], -torch.inf)
            alpha = scores.flatten(1).softmax(dim=1).view_as(scores)
            # sum_j alpha_j ((1 + g) x_j + o) by type: the gains are applied after the sum, which is the smaller tensor.
            by_type = torch.einsum("bpt,bptd->btd", alpha, x) * (1 + self.gain[: len(has)])
            fused = by_type.sum(dim=1) + torch.einsum("bpt,td->bd", alpha, self.offset[: len(has)])
        return torch.where(any_text[:, None], fused, self.null), any_text.to(fused.dtype)

    def _query(self, mean: Tensor, candidate: Tensor | None, has_candidate: Tensor | None) -> Tensor:
        query: Tensor = self.self_query(mean)
        if candidate is None or self.candidate_query is None:
            return query
        if has_candidate is None:
            asked: Tensor = self.candidate_query(candidate)
            return asked
        there = has_candidate.bool()[:, None]
        return torch.where(there, self.candidate_query(torch.where(there, candidate, 0.0)), query)

    def _check(
        self,
        summary: Tensor,
        shift: Tensor | None,
        has_summary: Tensor,
        has_shift: Tensor,
        age_days: Tensor,
        candidate: Tensor | None,
    ) -> None:
        if summary.ndim != 3 or summary.shape[2] != self.dim:
            raise InputError(f"`summary` is to be [b, p, {self.dim}], it is {list(summary.shape)}.")
        if shift is not None and shift.shape != summary.shape:
            raise InputError(
                f"`shift` is {list(shift.shape)} and `summary` {list(summary.shape)}; they are to be equal."
            )
        for name, mask in (("has_summary", has_summary), ("has_shift", has_shift), ("age_days", age_days)):
            if mask.shape != summary.shape[:2]:
                raise InputError(f"`{name}` is to be {list(summary.shape[:2])}, it is {list(mask.shape)}.")
        if candidate is not None and self.candidate_dim is None:
            raise InputError("A candidate came to a fusion without a query for it. Build it with candidate_dim=.")
        if candidate is not None and candidate.shape != (len(summary), self.candidate_dim):
            raise InputError(
                f"`candidate` is to be {[len(summary), self.candidate_dim]}, it is {list(candidate.shape)}."
            )


def mean_fusion(users: np.ndarray, partition_no: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Row k of a user: the mean of the embeddings of the user's partitions up to and including k. float32 [n, d].

    `users` [n] are ids or codes, each user's rows together and in order of `partition_no` [n]; `vectors` is [n, d].
    A partition without an embedding simply has no row. Nothing after a row enters it, so the result may be joined
    from that partition's `sealed_at`.

    Raises InputError when lengths differ, or a user's rows are out of order, repeated or not together.
    """
    if not len(users) == len(partition_no) == len(vectors):
        raise InputError(
            f"users, partition_no and vectors have {len(users)}, {len(partition_no)} and {len(vectors)} rows; "
            "they must be columns of one table."
        )
    fused = np.empty(vectors.shape, dtype=np.float32)
    if len(users) == 0:
        return fused
    starts = _segment_starts(users, partition_no)
    ends = np.append(starts[1:], len(users))
    first = 0
    while first < len(starts):
        # Whole users only: the largest block that fits, or one user who alone is larger.
        last = max(int(np.searchsorted(ends, starts[first] + BLOCK_ROWS, side="right")), first + 1)
        lo, hi = int(starts[first]), int(ends[last - 1])
        lengths = ends[first:last] - starts[first:last]
        local = np.repeat(starts[first:last] - lo, lengths)
        sums = np.cumsum(vectors[lo:hi], axis=0, dtype=np.float64)
        before = sums[local - 1]
        before[local == 0] = 0.0
        count = np.arange(hi - lo) - local + 1
        np.divide(np.subtract(sums, before, out=sums), count[:, None], out=fused[lo:hi], casting="same_kind")
        first = last
    return fused


def _segment_starts(users: np.ndarray, partition_no: np.ndarray) -> np.ndarray:
    """Index of each user's first row."""
    new_user = np.append(True, users[1:] != users[:-1])
    wrong = np.flatnonzero(~new_user[1:] & (partition_no[1:] <= partition_no[:-1]))
    if len(wrong):
        row = int(wrong[0]) + 1
        raise InputError(
            f"Partition {partition_no[row]} of user {users[row]} follows partition {partition_no[row - 1]} "
            f"(row {row}). Sort the rows by user and partition_no, one row per partition."
        )
    starts = np.flatnonzero(new_user)
    if len(np.unique(users[starts])) != len(starts):
        raise InputError("A user's rows are not together. Sort the rows by user and partition_no.")
    return starts
