"""Knowledge features of a cell: texts of both sides through an adapter, and of the user's history through the item's.

    a_i, a_u            the item's and the user's texts [b, out]
    a_+, a_-            means of the item tower over the liked and the other events of the history [b, out]
    dot products        of a_i with a_u, a_+ and a_-, over the root of the width
    flags               which of the four are there

What a user's past items say is knowledge that any CTR model can join: the item table holds a row for each of them.
Every arm with item texts has these features, so arms differ in the texts only.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from adapters.collaborative import Interactions, reduction
from adapters.collaborative import Side as SideName
from adapters.experts import HybridExpertAdapter
from adapters.features import Knowledge
from adapters.lift.arms import Known, Side
from adapters.lift.config import TowerConfig
from adapters.samples import Samples


class PlainTowers(nn.Module):
    """What experts are measured against: per side Linear, ReLU, Linear, as wide as all experts of a tower together,
    beside the same linear path. Shapes: [b, d] -> [b, out]."""

    def __init__(self, user_dim: int, item_dim: int, config: TowerConfig) -> None:
        super().__init__()
        width = config.hidden * (config.shared + config.dedicated)
        dims = {"user": user_dim, "item": item_dim}

        def tower(dim: int) -> nn.Module:
            return nn.Sequential(
                nn.Linear(dim, width), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(width, config.out_dim)
            )

        self.towers = nn.ModuleDict({side: tower(dim) for side, dim in dims.items()})
        self.linear = nn.ModuleDict(
            {side: nn.Linear(dim, config.out_dim, bias=False) for side, dim in dims.items() if config.linear_path}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def user(self, x: Tensor) -> Tensor:
        return self._side("user", x)

    def item(self, x: Tensor) -> Tensor:
        return self._side("item", x)

    def _side(self, side: str, x: Tensor) -> Tensor:
        out: Tensor = self.towers[side](x)
        return out + self.linear[side](x) if side in self.linear else out


class CellKnowledge(Knowledge):
    """Features [b, dim] of samples by position, as this module's docstring lists them.

    Each side's tables are reduced once, by norms fitted on the rows that `train` samples read; the towers are then
    trained on those numbers, which is all that a cell keeps of a text.
    """

    user_rows: Tensor
    item_rows: Tensor
    item_table_0: Tensor
    of_item: Tensor
    liked: Tensor
    disliked: Tensor
    towers: PlainTowers | HybridExpertAdapter

    def __init__(
        self, known: Known, samples: Samples, train: np.ndarray, config: TowerConfig, seed: int, device: str, mlp: bool
    ) -> None:
        super().__init__(config.out_dim)
        self.has_item, self.has_user = known.item is not None, known.user is not None
        out = config.out_dim
        user, item = self.has_user * (out + 1), self.has_item * (3 * out + 5)
        self.dim = user + item + (self.has_user and self.has_item)
        # Where the dot products stand: those with the history's two means, and the one of both sides.
        self.dots = [user + 2 * out + 2, user + 3 * out + 4] if self.has_item else []
        self.dots += [self.dim - 1] if self.has_user and self.has_item else []
        given_sides: dict[SideName, Side | None] = {"user": known.user, "item": known.item}
        mask = np.zeros(len(samples), dtype=bool)
        mask[train] = True

        @cache
        def interactions(rank: int) -> Interactions:
            return Interactions.fit(samples, mask, rank, seed)

        tables = {
            name: _reduced(side, name, mask, interactions, config, seed)
            for name, side in given_sides.items()
            if side is not None
        }
        widths = {name: sum(table.shape[1] for table in made) for name, made in tables.items()}
        # A side without texts has a tower all the same, which nothing reads.
        user_dim, item_dim = (widths.get(name, max(widths.values())) for name in ("user", "item"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.towers = (PlainTowers if mlp else _experts)(user_dim, item_dim, config)
        for side, made in tables.items():
            given = given_sides[side]
            assert given is not None, side
            for place, table in enumerate(made):
                self.register_buffer(f"{side}_table_{place}", table, persistent=False)
            rows = torch.from_numpy(np.stack(given.rows, axis=1) + 1)
            self.register_buffer(f"{side}_rows", rows, persistent=False)
        if known.item is not None:
            assert known.item.of_item is not None, "items' texts are read for histories too"
            assert len(known.item.tables) == 1, "an item has texts of one source"
            self.register_buffer("of_item", torch.from_numpy(np.append(0, known.item.of_item + 1)), persistent=False)
            for name in ("liked", "disliked"):
                events = torch.from_numpy(np.ascontiguousarray(getattr(samples, name)))
                self.register_buffer(name, events, persistent=False)
        self.to(device)

    def forward(self, index: Tensor) -> Tensor:
        parts: list[Tensor] = []
        item = user = None
        if self.has_user:
            rows = self.user_rows[index]
            tables = [getattr(self, f"user_table_{place}") for place in range(rows.shape[1])]
            has = (rows > 0).any(dim=1)
            user = self._distinct(rows, tables) * has[:, None]
            parts += [user, has[:, None].float()]
        if self.has_item:
            # Row 0 stands for no text and stays zero. Most items are in some history of a batch: all are computed.
            augment = self.towers.item(self.item_table_0)
            augment = augment * (torch.arange(len(augment), device=augment.device) > 0)[:, None]
            rows = self.item_rows[index, 0]
            item = augment[rows]
            parts += [item, (rows > 0)[:, None].float()]
            for events in (self.liked[index].long(), self.disliked[index].long()):
                read = self.of_item[events]
                count = (read > 0).sum(dim=1, keepdim=True)
                mean = nn.functional.embedding_bag(read, augment, mode="sum") / count.clamp(min=1)
                parts += [mean, (count > 0).float(), self._dot(item, mean)]
        if item is not None and user is not None:
            parts.append(self._dot(item, user))
        return torch.cat(parts, dim=1)

    def _distinct(self, rows: Tensor, tables: list[Tensor]) -> Tensor:
        """The user tower's output per sample; a batch holds few distinct texts of users."""
        distinct, place = torch.unique(rows, dim=0, return_inverse=True)
        x = torch.cat([table[distinct[:, n]] for n, table in enumerate(tables)], dim=1)
        augment: Tensor = self.towers.user(x)
        out: Tensor = augment[place]
        return out

    def _dot(self, one: Tensor, other: Tensor) -> Tensor:
        product: Tensor = (one * other).sum(dim=1, keepdim=True) / self.out_dim**0.5
        return product


class CellHead(nn.Module):
    """A logit [b] out of a cell's features [b, dim] alone: linear, beginning as the sum of their dot products."""

    def __init__(self, knowledge: CellKnowledge) -> None:
        super().__init__()
        self.linear = nn.Linear(knowledge.dim, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight[0, knowledge.dots] = 1.0

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(features)
        return logits.squeeze(1)


def _experts(user_dim: int, item_dim: int, config: TowerConfig) -> HybridExpertAdapter:
    return HybridExpertAdapter(
        user_dim,
        item_dim,
        shared=config.shared,
        dedicated=config.dedicated,
        hidden=config.hidden,
        out=config.out_dim,
        dropout=config.dropout,
        linear_path=config.linear_path,
    )


def _reduced(
    side: Side,
    name: SideName,
    train: np.ndarray,
    interactions: Callable[[int], Interactions],
    config: TowerConfig,
    seed: int,
) -> list[Tensor]:
    """Each table as [1 + rows, its share of the components and directions], or as it is where texts are read raw.

    Row 0 is zero and stands for no text. `train` masks the samples that teach, `interactions` are theirs by rank.
    """
    if config.components is None:
        return [torch.from_numpy(np.concatenate([np.zeros_like(t[:1]), t])) for t in side.tables]
    reduced = []
    for place, (table, rows) in enumerate(zip(side.tables, side.rows, strict=True)):
        components = _share(config.components, len(side.tables), place)
        directions = _share(1 + config.collaborative, len(side.tables), place) if config.collaborative else 0
        full = np.zeros((1 + len(table), components + directions), dtype=np.float32)
        row = rows[train]
        if (row >= 0).any():
            # One of the directions is the mean label's.
            known = interactions(directions - 1) if directions else None
            norm, _ = reduction(known, name, table, row, min(components, table.shape[1]), config.whitening, seed)
            made = norm(torch.from_numpy(table.astype(np.float32, copy=False))).numpy()
            full[1:, : made.shape[1]] = made
        reduced.append(torch.from_numpy(full))
    return reduced


def _share(whole: int, parts: int, place: int) -> int:
    """Of `whole`, what the table at `place` has; the first has what does not divide."""
    share = whole // parts
    return whole - share * (parts - 1) if place == 0 else share
