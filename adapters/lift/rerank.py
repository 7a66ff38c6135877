"""Re-ranking as in KAR: lists of ten out of which a list-wise model brings forward what the user likes.

A list is four consecutive events of a user and six random items that the user has no event with, in random order. The
model is PRM's idea (Pei et al., RecSys 2019) at the size of the data: candidates attend to each other, without
positions, because these lists have no earlier ranking.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from adapters.backbone import FIRST_KNOWN, OUT_OF_VOCABULARY, PAD
from adapters.lift.arms import ArmSpec, arm_specs, known_to
from adapters.lift.cell import newest_events
from adapters.lift.compare import Interval, paired_interval
from adapters.lift.config import Arm, MatrixConfig
from adapters.lift.data import LiftData
from adapters.lift.matrix import FORMAT, Matrix
from adapters.lift.splits import Split
from adapters.lift.towers import CellKnowledge
from adapters.measures import resample_users
from adapters.samples import Samples
from adapters.train import known_items
from warehouse.errors import InputError
from warehouse.keys import digest
from warehouse.store import write_json

REAL, RANDOM = 4, 6
LENGTH = REAL + RANDOM
CUTOFFS = (1, 3, 5, 7, 10)
COMPARED_AT = 7
ARMS: tuple[Arm, ...] = ("base", "titles", "shuffled", "full")
LISTS_PER_BATCH = 256
MODEL = "A list-wise attention model after PRM: 32 wide, two heads, softmax loss over the list."


class RerankReport(BaseModel, frozen=True, extra="forbid"):
    """NDCG at several cutoffs per arm, means over seeds, and differences to `base` at one of them."""

    model: str
    lists: int
    length: int
    seeds: tuple[int, ...]
    compared_at: int
    ndcg: dict[Arm, dict[int, float]]
    differences: dict[Arm, Interval]


@dataclass(frozen=True)
class Lists:
    """`data` and `split` of candidates: ten rows per list, one list after the other; positions are of lists."""

    data: LiftData
    split: Split


def kept_rerank(matrix: Matrix, progress: Callable[[Arm, int, float], None] | None = None) -> RerankReport:
    """`measure_rerank` of the matrix's data, made once per data and settings and kept in its folder."""
    read = {"ctr", "tower", "kar_history_length", "seeds", "bootstrap_draws", "train_users"}
    settings = matrix.config.model_dump(mode="json", include=read)
    name = digest({"format": FORMAT, "data": matrix.data.digest, "settings": settings})
    path = matrix.folder / f"rerank-{name[:12]}.json"
    if path.exists():
        return RerankReport.model_validate_json(path.read_bytes())
    report = measure_rerank(matrix.data, matrix.split("kar", 0), matrix.config, progress)
    write_json(path, report.model_dump(mode="json"))
    return report


def measure_rerank(
    data: LiftData, split: Split, config: MatrixConfig, progress: Callable[[Arm, int, float], None] | None = None
) -> RerankReport:
    """What the arms `base`, `titles`, `shuffled` and `full` bring in KAR's protocol.

    `progress` is told (arm, seed, NDCG) after each fit.
    """
    lists = make_lists(data, split)
    specs = {arm: spec for arm, spec in arm_specs(data, "kar").items() if arm in ARMS}
    labels = lists.data.samples.label.reshape(-1, LENGTH)[lists.split.test]
    user = lists.data.samples.user[::LENGTH][lists.split.test]
    _, codes = np.unique(user, return_inverse=True)
    drawn = resample_users(int(codes.max()) + 1, config.bootstrap_draws, 0)
    weights = drawn[:, codes]
    ndcg: dict[Arm, dict[int, float]] = {}
    per_list: dict[Arm, np.ndarray] = {}
    for arm, spec in specs.items():
        by_seed = []
        for seed in config.seeds:
            scores = _fitted_scores(lists, spec, seed, config)
            by_seed.append(np.stack([ndcg_at(labels, scores, k) for k in CUTOFFS]))
            if progress is not None:
                progress(arm, seed, float(by_seed[-1][CUTOFFS.index(COMPARED_AT)].mean()))
        mean = np.mean(by_seed, axis=(0, 2))
        ndcg[arm] = {k: float(value) for k, value in zip(CUTOFFS, mean, strict=True)}
        per_list[arm] = np.stack(by_seed)[:, CUTOFFS.index(COMPARED_AT)]
    differences = {}
    for arm, values in per_list.items():
        if arm != "base":
            gains = values - per_list["base"]
            resampled = gains @ weights.T / weights.sum(axis=1)
            differences[arm] = paired_interval(gains.mean(axis=1).tolist(), resampled)
    return RerankReport(
        model=MODEL,
        lists=len(labels),
        length=LENGTH,
        seeds=config.seeds,
        compared_at=COMPARED_AT,
        ndcg=ndcg,
        differences=differences,
    )


def make_lists(data: LiftData, split: Split, seed: int = 0) -> Lists:
    """Lists out of each part's targets, taken four by four per user; those without a liked item are left out."""
    rng = np.random.default_rng(seed)
    samples = split.samples
    met = np.unique(samples.user.astype(np.int64) * len(samples.items) + samples.item)
    firsts, events, parts = [], [], []
    for part, rows in enumerate((split.train, split.valid, split.test)):
        fours = _fours(samples.user, rows)
        fours = fours[samples.label[fours].any(axis=1)]
        events.append(fours)
        firsts.append(fours[:, 0])
        parts.append(np.full(len(fours), part))
    event, first, part_of = np.concatenate(events), np.concatenate(firsts), np.concatenate(parts)
    others = _unmet(samples.user[first], met, len(samples.items), rng)
    item = np.concatenate([samples.item[event], others], axis=1)
    label = np.concatenate([samples.label[event], np.zeros(others.shape, samples.label.dtype)], axis=1)
    order = rng.permuted(np.tile(np.arange(LENGTH), (len(first), 1)), axis=1)
    item, label = (np.take_along_axis(column, order, axis=1).reshape(-1) for column in (item, label))
    # All ten are judged at the time of the first event: nothing of the four is in the history.
    at = np.repeat(first, LENGTH)
    candidates = replace(samples.take(at), item=item.astype(samples.item.dtype), label=label)
    sources = {
        name: replace(s, holder=candidates.item if s.side == "item" else s.holder[at])
        for name, s in data.sources.items()
    }
    made = replace(data, samples=candidates, sources=sources, rungs=None)
    train, valid, test = (np.flatnonzero(part_of == part) for part in range(3))
    return Lists(made, Split(split.protocol, candidates, train, valid, test))


def ndcg_at(label: np.ndarray, score: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k of each list, [lists]: `label` 0 or 1 and `score` [lists, length]; every list has a positive."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    gained = np.take_along_axis(label, np.argsort(-score, axis=1, kind="stable"), axis=1)[:, :k] @ discount[:k]
    best = -np.sort(-label, axis=1)[:, :k] @ discount[:k]
    return np.asarray(gained / best)


class ListModel(nn.Module):
    """Scores [b, length] of candidates from their id, category, the user's history and knowledge."""

    def __init__(self, samples: Samples, known: np.ndarray, config: MatrixConfig, knowledge_dim: int) -> None:
        super().__init__()
        tokens = np.where(known, np.cumsum(known) - 1 + FIRST_KNOWN, OUT_OF_VOCABULARY)
        self.item = torch.from_numpy(tokens[samples.item])
        self.category = torch.from_numpy(samples.category[samples.item].astype(np.int64))
        self.histories = [torch.from_numpy(np.ascontiguousarray(h)) for h in (samples.liked, samples.disliked)]
        self.history_tokens = torch.from_numpy(np.append(PAD, np.where(known, tokens, PAD)))
        self.history_categories = torch.from_numpy(np.append(0, samples.category).astype(np.int64))
        dim = config.ctr.embedding_dim
        self.items = nn.Embedding(FIRST_KNOWN + int(known.sum()), dim)
        self.categories = nn.Embedding(len(samples.categories) + 1, dim)
        for table in (self.items, self.categories):
            nn.init.normal_(table.weight, std=0.05)
        self.entry = nn.Linear(6 * dim + knowledge_dim, 32)
        self.attend = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.1, batch_first=True)
        self.score = nn.Linear(32, 1)

    def forward(self, rows: Tensor, knowledge: Tensor | None, masked: Tensor | None = None) -> Tensor:
        """`rows` [b, length] are candidates by position; `knowledge` [b * length, dim] theirs, in that order."""
        flat = rows.reshape(-1)
        item = self.item[flat]
        if masked is not None:
            item = item.masked_fill(masked, OUT_OF_VOCABULARY)
        parts = [self.items(item), self.categories(self.category[flat])]
        for events in self.histories:
            codes = events[flat].long()
            for table, meaning in ((self.items, self.history_tokens), (self.categories, self.history_categories)):
                read = meaning[codes]
                there = (read != PAD).float()[:, :, None]
                parts.append((table(read) * there).sum(1) / there.sum(1).clamp(min=1))
        if knowledge is not None:
            parts.append(knowledge)
        hidden = self.attend(self.entry(torch.cat(parts, dim=1)).reshape(*rows.shape, -1))
        scores: Tensor = self.score(hidden).squeeze(2)
        return scores


def _fitted_scores(lists: Lists, spec: ArmSpec, seed: int, config: MatrixConfig) -> np.ndarray:
    """Scores of the test lists [lists, length] by the epoch that was best on the validation lists."""
    samples = newest_events(lists.split.samples, config.kar_history_length)
    rows = np.arange(len(samples)).reshape(-1, LENGTH)
    train = rows[lists.split.train].reshape(-1)
    seen = np.zeros(len(samples), dtype=bool)
    seen[train] = True
    given = known_to(spec, lists.data, replace(lists.split, samples=samples), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        knowledge = None
        if given.item is not None or given.user is not None:
            knowledge = CellKnowledge(given, samples, train, config.tower, seed, "cpu", spec.mlp)
        model = ListModel(samples, known_items(samples, seen), config, knowledge.dim if knowledge else 0)
        modules = nn.ModuleList([m for m in (model, knowledge) if m is not None])
        optimiser = torch.optim.AdamW(modules.parameters(), lr=1e-3, weight_decay=config.ctr.weight_decay)
        label = torch.from_numpy(samples.label)
        rng = np.random.default_rng(seed)
        best, best_state, since = -1.0, copy.deepcopy(modules.state_dict()), 0
        for _epoch in range(config.ctr.max_epochs):
            modules.train()
            for part in np.array_split(rng.permutation(lists.split.train), -(-len(train) // LENGTH // LISTS_PER_BATCH)):
                batch = torch.from_numpy(rows[part])
                hidden = torch.from_numpy(rng.random(batch.numel()) < config.ctr.id_mask)
                scores = model(batch, knowledge(batch.reshape(-1)) if knowledge else None, hidden)
                wanted = label[batch] / label[batch].sum(dim=1, keepdim=True)
                loss = -(wanted * scores.log_softmax(dim=1)).sum(dim=1).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            valid = rows[lists.split.valid]
            reached = float(ndcg_at(samples.label[valid], _scores(model, knowledge, valid), LENGTH).mean())
            if reached > best:
                best, best_state, since = reached, copy.deepcopy(modules.state_dict()), 0
            elif (since := since + 1) > config.ctr.patience:
                break
        modules.load_state_dict(best_state)
    return _scores(model, knowledge, rows[lists.split.test])


def _scores(model: ListModel, knowledge: CellKnowledge | None, rows: np.ndarray) -> np.ndarray:
    model.eval()
    made = []
    with torch.inference_mode():
        for start in range(0, len(rows), 512):
            batch = torch.from_numpy(rows[start : start + 512])
            made.append(model(batch, knowledge(batch.reshape(-1)) if knowledge else None).numpy())
    return np.concatenate(made)


def _fours(user: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Positions of four consecutive targets of one user each, [lists, 4]; fewer at a user's end are not used."""
    order = rows[np.argsort(user[rows], kind="stable")]
    owners = user[order]
    starts = np.flatnonzero(np.append(True, owners[1:] != owners[:-1])[: len(order)])
    lengths = np.diff(np.append(starts, len(order)))
    place = np.arange(len(order)) - np.repeat(starts, lengths)
    whole = np.repeat(lengths // REAL * REAL, lengths)
    return np.asarray(order[place < whole].reshape(-1, REAL))


def _unmet(users: np.ndarray, met: np.ndarray, items: int, rng: np.random.Generator) -> np.ndarray:
    """Per list six different items that its user has no event with, [lists, 6].

    Raises InputError when a user has met all items but fewer than six.
    """
    most = int(np.unique(met // items, return_counts=True)[1].max())
    if items - most < RANDOM:
        raise InputError(f"A user has events with {most} of {items} items: too few are left for a list of {LENGTH}.")
    chosen = rng.integers(0, items, (len(users), RANDOM))
    while True:
        taken = np.isin(users[:, None].astype(np.int64) * items + chosen, met)
        order = np.argsort(chosen, axis=1, kind="stable")
        ordered = np.take_along_axis(chosen, order, axis=1)
        repeated = np.concatenate([np.zeros((len(users), 1), bool), ordered[:, 1:] == ordered[:, :-1]], axis=1)
        np.put_along_axis(taken, order, np.take_along_axis(taken, order, axis=1) | repeated, axis=1)
        if not taken.any():
            return chosen
        chosen[taken] = rng.integers(0, items, int(taken.sum()))
