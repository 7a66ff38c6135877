"""Joint mode: the embeddings of a warehouse as samples of a torch Dataset, each as of its own time.

    dataset = lorestream.KnowledgeDataset.open("warehouse", impressions, columns=["label"])
    user_norm, item_norm = dataset.fit_norms()                     # on training samples; others get the same
    adapter = HybridExpertAdapter(dataset.dim, dataset.dim, user_norm=user_norm, item_norm=item_norm)
    for batch in DataLoader(dataset, batch_size=256, shuffle=True):
        user, known = fusion(*partitions_of(batch), batch["item"], batch["has_item"])      # InterestFusion
        a_u, a_i = adapter(user, batch["item"])                                            # HybridExpertAdapter
        logit = your_model(batch, a_u, a_i, known, batch["has_item"])

`demo/joint_torch.py` and `demo/joint_deepctr.py` are whole examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adapters.knowledge import EntityVectors, Stored, item_vectors, user_vectors
from adapters.samples import newest_before
from adapters.texts import Partitions, TextTensors, UserTexts
from adapters.whitening import InputNorm
from warehouse.errors import UsageError
from warehouse.frame import Frame, as_arrow
from warehouse.join import ids, microseconds
from warehouse.ledger import Ledger
from warehouse.reader import open as open_warehouse
from warehouse.schemas import TIMESTAMP
from warehouse.segments import segments
from warehouse.sql import connect, parquet_view

_VECTOR = pa.list_(pa.float32())


class KnowledgeDataset(Dataset[dict[str, Tensor]]):
    """What was known of each sample's user and item just before the sample's time, as text embeddings of d numbers.

    `dataset[n]`, for p = `max_partitions`, oldest partition first:

        summary, shift         [p, d]   the texts of the user's newest partitions sealed before the sample
        has_summary, has_shift [p]      which of them there are; the rest are padding
        age_days               [p]      from the partition's end to the sample
        item                   [d]      the item's newest facts that held before the sample
        has_item               []       whether there are any; where not, `item` has no meaning
        and each of `columns`           of the samples, as `Frame.to_torch` gives it

    `dataset[positions]`, of a list or array of b positions, is the same with a dimension b in front, and faster than b
    single samples (as `DataLoader(dataset, sampler=BatchSampler(...), batch_size=None)` reads it).
    """

    def __init__(
        self,
        users: EntityVectors,
        items: EntityVectors,
        samples: object,
        *,
        user: str = "user_id",
        item: str = "item_id",
        ts: str = "ts",
        columns: Sequence[str] = (),
        max_partitions: int = 8,
    ) -> None:
        if max_partitions < 1:
            raise UsageError(f"max_partitions={max_partitions} leaves no partition to read; give at least 1.")
        assert users.texts is not None, "users come with their texts"
        table = as_arrow(samples)
        moments = pc.fill_null(microseconds(table, ts), np.iinfo(np.int64).min).to_numpy()
        user_row, item_row = (
            _row_before(ids(table, column), moments, known) for column, known in ((user, users), (item, items))
        )
        self.max_partitions, self.dim = max_partitions, users.vectors.shape[1]
        self.user_texts = TextTensors(_as_of(users.texts, user_row, moments, max_partitions), torch.as_tensor, "cpu")
        self.item_vectors = torch.from_numpy(
            np.concatenate([items.vectors, np.zeros((1, self.dim))]).astype(np.float32, copy=False)
        )
        self.item_row = torch.from_numpy(item_row)
        self.columns = Frame(table).to_torch(columns) if columns else {}

    @classmethod
    def open(
        cls,
        warehouse: str | Path,
        samples: object,
        *,
        user: str = "user_id",
        item: str = "item_id",
        ts: str = "ts",
        columns: Sequence[str] = (),
        max_partitions: int = 8,
    ) -> Self:
        """Samples (a pyarrow table, pandas or polars frame, or DuckDB relation) with the knowledge in a warehouse.

        The knowledge is that of the current snapshot's model, prompts and encoder. `user`, `item`, `ts` name columns of
        the samples, and `columns` those that come along. Raises as `lorestream.open` and `Warehouse.join` do, and
        UsageError for a column that cannot be a tensor.
        """
        stored = stored_knowledge(Path(warehouse))
        return cls(
            user_vectors(stored),
            item_vectors(stored),
            samples,
            user=user,
            item=item,
            ts=ts,
            columns=columns,
            max_partitions=max_partitions,
        )

    # The defaults are those of `AdapterConfig`.
    def fit_norms(self, components: int = 256, power: float = 0.25) -> tuple[InputNorm, InputNorm]:
        """Whitening and reduction to put in front of an adapter's user and item tower, [b, d] -> [b, components].

        Fitted on the texts that these samples read and on no others: call it on the dataset of the training samples.
        `power` is that of `InputNorm.whiten`. Raises InputError when no sample has a text of its user, or of its item.
        """
        item_row = np.unique(self.item_row.numpy())
        texts = self.user_texts.vectors[self.user_texts.used()], self.item_vectors[item_row[item_row >= 0]]
        user, item = (InputNorm.whiten(side.numpy(), min(components, self.dim), power) for side in texts)
        return user, item

    def __len__(self) -> int:
        return len(self.item_row)

    def __getitem__(self, position: int | Sequence[int] | np.ndarray | Tensor) -> dict[str, Tensor]:
        rows = torch.as_tensor(position)
        many = rows.reshape(-1)
        found = self.user_texts.gather(many, self.max_partitions)
        shift = torch.zeros_like(found.summary) if found.shift is None else found.shift
        item_row = self.item_row[many]
        batch = {
            **found._replace(shift=shift)._asdict(),
            "item": self.item_vectors[item_row],
            "has_item": item_row >= 0,
            **{name: column[many] for name, column in self.columns.items()},
        }
        return batch if rows.ndim else {name: tensor[0] for name, tensor in batch.items()}


def partitions_of(batch: Mapping[str, Tensor]) -> Partitions:
    """The users' partitions in a batch, as `InterestFusion` takes them."""
    return Partitions(**{name: batch[name] for name in Partitions._fields})


def stored_knowledge(root: Path) -> Stored:
    """The knowledge that the current snapshot of a warehouse was made of, with all that was added since.

    Raises WarehouseNotFound and UsageError as `lorestream.open` does, and UsageError when nothing was encoded.
    """
    made_by = open_warehouse(root).snapshot.lineage
    ledger = Ledger(root)
    embeddings = segments(ledger, "embeddings")
    encoder = str(made_by.get("encoder_id", ""))
    with connect() as con:
        parquet_view(con, "embeddings", embeddings, pa.schema([("encoder_id", pa.string()), ("vector", _VECTOR)]))
        found = con.execute("SELECT len(vector) FROM embeddings WHERE encoder_id = ? LIMIT 1", [encoder]).fetchall()
    if not found:
        what = f"embedding of {encoder}" if encoder else "published embedding"
        raise UsageError(f"The warehouse {root} holds no {what}. Finish a `lorestream run` first.")
    versions = cast("Mapping[str, str]", made_by["prompt_versions"])
    return Stored(
        requests=ledger.files("requests"),
        knowledge=segments(ledger, "knowledge"),
        embeddings=embeddings,
        engine_id=str(made_by["engine_id"]),
        encoder_id=encoder,
        dim=int(found[0][0]),
        prompt_versions=versions,
        # Snapshots of an older Lorestream do not name them; all kinds that were asked about are meant then.
        kinds=cast("Sequence[str]", made_by.get("kinds", list(versions))),
        partitions=ledger.files("partitions"),
        items=ledger.files("items"),
        groups=ledger.files("groups"),
        group_members=ledger.files("group_members"),
    )


def _row_before(entities: pa.ChunkedArray, moments: np.ndarray, known: EntityVectors) -> np.ndarray:
    """For each sample the newest row with a vector and valid_from < its time, -1 where there is none. int64 [n]."""
    kept = np.flatnonzero(known.has_vector)
    rows = known.rows.take(pa.array(kept))
    vocabulary = pc.unique(rows.column("entity_id"))
    # An unknown id gets a code that no row has.
    code = pc.fill_null(pc.index_in(entities, value_set=vocabulary), len(vocabulary)).to_numpy()
    row_code = pc.index_in(rows.column("entity_id"), value_set=vocabulary).to_numpy()
    valid_from = rows.column("valid_from").cast(TIMESTAMP).cast(pa.int64()).to_numpy()
    found = newest_before(code, moments, row_code, valid_from, 1)[:, 0]
    return np.asarray(np.append(kept, -1)[found])


def _as_of(texts: UserTexts, row: np.ndarray, moments: np.ndarray, max_partitions: int) -> UserTexts:
    """A row per sample: the newest partitions that its user's row may use, their age counted to the sample."""
    last = np.append(texts.last, 0)[row]
    first = np.maximum(np.append(texts.first, 0)[row], last - max_partitions)
    return replace(texts, first=first, last=last, at=moments)
