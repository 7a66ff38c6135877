"""What a feature table may shrink to: bytes per row against a CTR model's AUC.

    python benchmarks/storage_forms.py CONFIG [--json] [--seeds N] [--dims 8 16 32 64]

CONFIG is the lorestream.toml of a finished warehouse; `make demo` leaves demo-output/lorestream.toml. For each width an
adapter is trained as `lorestream train` would, on the older events, and its vectors are stored in each form and read
back. The CTR model (of `[adapter]`) is fitted on what it then reads and judged on the newest events, which neither
adapter nor model were fitted or chosen on. `read` says how it reads them: as numbers, or codes as categories with
embeddings of the model's own. Beside it stands the same model without knowledge. AUC is a mean over seeds with its
smallest and largest; bytes are those of one vector, ids and lineage left out.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from adapters.backbone import CtrModel
from adapters.config import CtrConfig
from adapters.features import StoredKnowledge
from adapters.fit import fit, predict
from adapters.knowledge import item_vectors, user_vectors
from adapters.lift.published import Augment
from adapters.measures import auc
from adapters.samples import Samples, time_split
from adapters.storage_forms import Codes, compress
from adapters.train import known_items, train_adapter
from adapters.training import labelled_samples
from flows.config import load_config
from flows.run import Run

NUMBERS = ("float32", "float16", "int8")
CODES = ((2, 256), (4, 256), (8, 256))


@dataclass(frozen=True)
class Published:
    """One side's vectors [rows, d], each table row once, and the place among them of each sample that `has` one."""

    rows: np.ndarray
    has: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, has: np.ndarray, row: np.ndarray) -> Self:
        """Out of joined vectors [n, d] and the table row of each sample."""
        distinct, place = np.unique(row[has], return_inverse=True)
        first = np.zeros(len(distinct), dtype=np.int64)
        first[place] = np.flatnonzero(has)
        return cls(vectors[first], has, place)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """What stands at each row, per sample; zeros where a sample has none."""
        made = np.zeros((len(self.has), *values.shape[1:]), values.dtype)
        made[self.has] = values[self.place]
        return made


class Judge:
    """Fits of one CTR model on the older samples, and the AUC on the newest."""

    def __init__(self, samples: Samples, config: CtrConfig, seeds: int, fractions: tuple[float, float]) -> None:
        self.samples, self.config, self.seeds = samples, config, seeds
        self.masks = time_split(samples.ts, *fractions).masks(samples.ts)
        self.known = known_items(samples, self.masks[0])

    def row(self, knowledge: StoredKnowledge | None, fields: dict[str, np.ndarray], **named: object) -> dict[str, Any]:
        """A line of the table."""
        newest = np.flatnonzero(self.masks[2])
        found = []
        for seed in range(self.seeds):
            config = self.config.model_copy(update={"seed": seed})
            model = CtrModel(self.samples, self.known, config, knowledge.dim if knowledge else 0, fields)
            fit(model, knowledge, self.samples, self.masks, config)
            found.append(auc(self.samples.label[newest], predict(model, knowledge, newest)))
        line = {**named, "auc": round(float(np.mean(found)), 4), "auc_by_seed": [round(f, 4) for f in found]}
        print("  ".join(f"{value}" for value in line.values()), file=sys.stderr)
        return line


def measure(config_path: Path, seeds: int, dims: list[int]) -> list[dict[str, Any]]:
    config = load_config(config_path)
    run = Run(config, config.root)
    users, items = user_vectors(run.stored), item_vectors(run.stored)
    samples = labelled_samples(run.labelled_events, users, items, config.adapter.history_length)
    ctr = CtrConfig.model_validate({name: getattr(config.adapter, name) for name in CtrConfig.model_fields})
    fractions = config.adapter.validation_fraction, config.adapter.holdout_fraction
    judge = Judge(samples, ctr, seeds, fractions)
    table = [judge.row(None, {}, dim=0, form="none", read="", bytes=0)]
    for dim in dims:
        adapter = train_adapter(
            samples,
            users.vectors,
            items.vectors,
            config.adapter.model_copy(update={"out_dim": dim}),
            encoder_id=run.stored.encoder_id,
            texts=users.texts,
        )
        whole = Augment.of(adapter, samples, users.vectors, items.vectors)
        sides = {
            "user": Published.of(whole.user, whole.has_user, samples.user_row),
            "item": Published.of(whole.item, whole.has_item, samples.item_row),
        }
        for form in (*NUMBERS, *(f"codes{levels}x{size}" for levels, size in CODES)):
            read, sizes = zip(*(compress(side.rows, form) for side in sides.values()), strict=True)
            user, item = (side.spread(vectors) for side, vectors in zip(sides.values(), read, strict=True))
            knowledge = StoredKnowledge(user, item, whole.has_user, whole.has_item, ctr.device)
            table.append(judge.row(knowledge, {}, dim=dim, form=form, read="numbers", bytes=sizes[0]))
        for levels, size in CODES:
            # 0 stands for no knowledge.
            fields = {
                f"{name}_code_{level}": side.spread(1 + Codes.fit(side.rows, levels, size).codes[:, level].astype(int))
                for name, side in sides.items()
                for level in range(levels)
            }
            form = f"codes{levels}x{size}"
            table.append(judge.row(None, fields, dim=dim, form=form, read="categories", bytes=float(levels)))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 16, 32, 64])
    arguments = parser.parse_args()
    table = measure(arguments.config, arguments.seeds, arguments.dims)
    if arguments.json:
        print(json.dumps({"config": str(arguments.config), "seeds": arguments.seeds, "table": table}))
        return
    print(f"{'numbers':>8}  {'form':<12}{'read as':<12}{'bytes':>6}{'AUC':>9}")
    for line in table:
        print(f"{line['dim']:>8}  {line['form']:<12}{line['read']:<12}{line['bytes']:>6.0f}{line['auc']:>9.4f}")


if __name__ == "__main__":
    main()
