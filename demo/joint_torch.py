"""Joint mode in plain PyTorch: your own CTR model trains Lorestream's fusion and adapter inside itself.

    python -m demo.joint_torch demo-output        (after `make demo`, or a folder of your own with inputs and warehouse)

Nothing is materialised: the model reads text embeddings out of the warehouse, each sample those from before its time.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from adapters.joint import partitions_of
from adapters.measures import auc
from adapters.samples import newest_before
from adapters.whitening import InputNorm
from lorestream import HybridExpertAdapter, InterestFusion, KnowledgeDataset

FIELD = 32
HISTORY = 10

Batch = dict[str, Tensor]
# Of the user's and the item's texts.
Norms = tuple[InputNorm, InputNorm]


class KnowingModel(nn.Module):
    """Logits [b] of an MLP over the item's id, the user's and the item's augment vector, and what is missing."""

    def __init__(self, items: int, norms: Norms) -> None:
        super().__init__()
        text_dim = norms[0].in_dim
        self.item = nn.Embedding(items + 1, FIELD, padding_idx=0)
        self.fusion = InterestFusion(text_dim, candidate_dim=text_dim)
        self.adapter = HybridExpertAdapter(
            text_dim, text_dim, dedicated=2, out=FIELD, user_norm=norms[0], item_norm=norms[1], linear_path=True
        )
        self.adapter.require_width(FIELD)
        self.deep = nn.Sequential(nn.Linear(3 * FIELD + 3, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, batch: Batch) -> Tensor:
        user, has_user = self.fusion(*partitions_of(batch), batch["item"], batch["has_item"])
        has_item = batch["has_item"].float()
        a_u, a_i = self.adapter(user, batch["item"])
        agreement = (a_u * a_i).sum(dim=1, keepdim=True) / FIELD**0.5
        flags = torch.stack([has_user, has_item], dim=1)
        fields = [self.item(batch["item_code"]), a_u, a_i * has_item[:, None], agreement * has_item[:, None], flags]
        logits: Tensor = self.deep(torch.cat(fields, dim=1))
        return logits.squeeze(1)


def read_samples(behaviours: Path) -> tuple[pa.Table, int]:
    """Samples in order of time, and the number of items.

    Beside the behaviours' columns: `label`, `item_code` (from 1 on), and `history`, the codes of the last HISTORY liked
    items before the sample, newest first, 0 where there are no more (floats, as DeepCTR-Torch wants them).
    """
    table = pq.read_table(behaviours).sort_by([("ts", "ascending"), ("user_id", "ascending"), ("item_id", "ascending")])
    users, items = (pc.unique(table.column(name)) for name in ("user_id", "item_id"))
    user, item = (
        pc.index_in(table.column(name), value_set=known).to_numpy()
        for name, known in (("user_id", users), ("item_id", items))
    )
    label = pc.greater(table.column("value"), 3).to_numpy()
    ts = table.column("ts").cast(pa.int64()).to_numpy()
    liked = np.flatnonzero(label)
    newest = newest_before(user, ts, user[liked], ts[liked], HISTORY)
    history = np.append(item[liked] + 1, 0)[newest].astype(np.float32)
    table = table.append_column("label", pa.array(label.astype(np.float32)))
    table = table.append_column("item_code", pa.array(item + 1, pa.int64()))
    table = table.append_column("history", pa.FixedSizeListArray.from_arrays(pa.array(history.reshape(-1)), HISTORY))
    return table, len(items)


def batches(dataset: KnowledgeDataset, size: int, shuffle: bool) -> DataLoader[Batch]:
    """Whole batches at a time, which is much faster than collating single samples."""
    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    return DataLoader(dataset, sampler=BatchSampler(order, size, drop_last=False), batch_size=None)


def fit(model: nn.Module, dataset: KnowledgeDataset, epochs: int, batch_size: int = 512) -> list[float]:
    """Mean training loss of each epoch; one optimiser for model, fusion and adapter, as KAR trains."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    losses = []
    for _ in range(epochs):
        model.train()
        seen = []
        for batch in batches(dataset, batch_size, shuffle=True):
            loss = nn.functional.binary_cross_entropy_with_logits(model(batch), batch["label"])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seen.append(float(loss.detach()))
        losses.append(float(np.mean(seen)))
    return losses


@torch.inference_mode()
def predict(model: nn.Module, dataset: KnowledgeDataset, batch_size: int = 4096) -> np.ndarray:
    """Click probabilities [n]."""
    model.eval()
    made = torch.cat([model(batch).sigmoid() for batch in batches(dataset, batch_size, shuffle=False)])
    return np.asarray(made.numpy())


def demo_folder(given: str) -> Path:
    """The folder of that name. Raises ArgumentTypeError where it is not what `make demo` makes."""
    folder = Path(given)
    if not (folder / "inputs" / "behaviours.parquet").is_file():
        raise argparse.ArgumentTypeError(f"{folder} holds no inputs/behaviours.parquet; `make demo` makes demo-output")
    return folder


def train_jointly(folder: Path, make: Callable[[int, Norms], nn.Module], epochs: int) -> tuple[nn.Module, float]:
    """The model that `make` builds of (items, norms), fitted on the older four fifths of the events in `folder`, and
    its AUC on the newest."""
    samples, items = read_samples(folder / "inputs" / "behaviours.parquet")
    cut = samples.num_rows * 4 // 5
    columns = ["label", "item_code", "history"]
    train, test = (
        KnowledgeDataset.open(folder / "warehouse", part, columns=columns)
        for part in (samples.slice(0, cut), samples.slice(cut))
    )
    torch.manual_seed(0)
    model = make(items, train.fit_norms())
    fit(model, train, epochs)
    return model, auc(test.columns["label"].numpy(), predict(model, test))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a plain PyTorch CTR model jointly with Lorestream's modules.")
    parser.add_argument("folder", type=demo_folder, help="holds inputs/behaviours.parquet and warehouse/")
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    _, reached = train_jointly(given.folder, KnowingModel, given.epochs)
    print(f"AUC on the newest fifth of the events: {reached:.4f}")


if __name__ == "__main__":
    main()
