"""Each export goes through the real loader of its library, and what that looks up is what the table holds.

FuxiCTR is part of our environment. The others cannot share it: RecBole wants an older numpy, Feast another pyarrow.
Name the interpreter of an environment that has one, and its test runs:

    LORESTREAM_RECBOLE_PYTHON    recbole 1.2.1 with numpy < 1.24, pandas < 2.1 and torch
    LORESTREAM_FEAST_PYTHON      feast 0.67
    LORESTREAM_EASYREC_PYTHON    tzrec (TorchEasyRec), which is in no public package registry
"""

import json
import os
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import lorestream
from warehouse.manifest import publish
from warehouse.reader import Warehouse

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]

USERS, ITEMS = ["u1", "ü 2", "003"], ["i1", "i2"]


@pytest.fixture
def warehouse(tmp_path: Path, feature_rows: Build, at: Clock) -> Warehouse:
    """Every user and item has two versions; of the second one nothing is to be seen at its own moment, second 20."""

    def versions(entity: str, ids: list[str]) -> list[dict[str, Any]]:
        return [
            {
                entity: name,
                "valid_from": at(moment),
                "created_at": at(made),
                "augment": [n + 0.1, -moment / 3, 1e-8 * n],
            }
            for n, name in enumerate(ids)
            for moment, made in ((10, 11), (20, 40))
        ]

    rows = {
        "user_features": feature_rows("user_features", versions("user_id", USERS), dim=3),
        "item_features": feature_rows("item_features", versions("item_id", ITEMS), dim=3),
    }
    publish(tmp_path / "warehouse", rows, replace=False, now=at(0), lineage={})
    return lorestream.open(tmp_path / "warehouse")


def joined(warehouse: Warehouse, side: str, ids: list[str], at: list[datetime], clock: Any = "event") -> list[Any]:
    """The vectors of `ids` at these moments as the warehouse's own join has them, null where there is none."""
    other = {"item": None} if side == "user" else {"user": None}
    shown = pa.table({f"{side}_id": ids, "ts": pa.array(at, pa.timestamp("us", "UTC"))})
    vectors: list[Any] = (
        warehouse.join(shown, fill="null", clock=clock, **other).to_arrow()[f"{side}_augment"].to_pylist()
    )
    return vectors


def interpreter(library: str) -> str:
    """The Python that has `library`; without one the test is skipped."""
    name = f"LORESTREAM_{library.upper()}_PYTHON"
    if name not in os.environ:
        pytest.skip(f"{library} cannot share our environment: name a Python that has it in {name}")
    return os.environ[name]


def looked_up(library: str, folder: Path, script: str, *arguments: object) -> Any:
    """What `script` prints as JSON in the last line, run in `folder` by the Python that has `library`."""
    command = [interpreter(library), "-c", script, *map(str, arguments)]
    # None of our variables: they are for our interpreter.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_fuxictr_embeds_ids_by_their_vectors(warehouse: Warehouse, tmp_path: Path, at: Clock) -> None:
    pytest.importorskip("fuxictr", reason="fuxictr is not installed")
    import polars as pl
    import torch
    from fuxictr.preprocess import FeatureProcessor
    from fuxictr.pytorch.layers import FeatureEmbeddingDict

    warehouse.export("fuxictr", tmp_path / "out", at=at(20))
    columns = [
        {
            "name": f"{side}_id",
            "active": True,
            "dtype": "str",
            "type": "categorical",
            "pretrained_emb": str(tmp_path / "out" / f"{side}_augment-at-20200101T000020Z.npz"),
            "pretrain_dim": 3,
            "pretrain_usage": "init",
        }
        for side in ("user", "item")
    ]
    # Training data that knows neither all users nor all items, and one stranger.
    train = pl.LazyFrame({"user_id": ["u1", "stranger"], "item_id": ["i2", "i2"], "label": [1.0, 0.0]})
    processor = FeatureProcessor(
        feature_cols=columns, label_col={"name": "label", "dtype": "float"}, dataset_id="d", data_root=str(tmp_path)
    )
    processor.fit(processor.preprocess(train))
    layers = FeatureEmbeddingDict(processor.feature_map, embedding_dim=3).embedding_layers
    for side, ids in (("user", USERS), ("item", ITEMS)):
        vocabulary = processor.processor_dict[f"{side}_id::tokenizer"].vocab
        found = layers[f"{side}_id"](torch.tensor([vocabulary[name] for name in ids]))
        assert found.tolist() == joined(warehouse, side, ids, [at(20)] * len(ids))
    stranger = processor.processor_dict["user_id::tokenizer"].vocab["stranger"]
    assert layers["user_id"](torch.tensor([stranger])).tolist() == [[0.0, 0.0, 0.0]]


RECBOLE = """
import json, sys
from recbole.config import Config
from recbole.data import create_dataset
folder, name, users, items = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
sys.argv = sys.argv[:1]
config = Config(model="BPR", dataset=name, config_dict={
    "data_path": folder, "additional_feat_suffix": ["useremb", "itememb"],
    "load_col": {"inter": ["user_id", "item_id"], "useremb": ["uid", "user_emb"], "itememb": ["iid", "item_emb"]},
    "alias_of_user_id": ["uid"], "alias_of_item_id": ["iid"],
    "preload_weight": {"uid": "user_emb", "iid": "item_emb"},
})
dataset = create_dataset(config)
weights = {field: dataset.get_preload_weight(field) for field in ("uid", "iid")}
print()
print(json.dumps([
    [weights[field][dataset.token2id(field, name)].tolist() for name in names]
    for field, names in (("uid", users), ("iid", items))
]))
"""


def test_recbole_preloads_the_vectors_of_its_tokens(warehouse: Warehouse, tmp_path: Path, at: Clock) -> None:
    interpreter("recbole")
    folder = tmp_path / "recbole" / "shop"
    warehouse.export("recbole", folder)
    (folder / "shop.inter").write_text("user_id:token\titem_id:token\nu1\ti1\n003\ti2\nstranger\ti1\n")
    found = looked_up(
        "recbole", tmp_path, RECBOLE, folder.parent, "shop", json.dumps([*USERS, "stranger"]), json.dumps(ITEMS)
    )
    for side, ids, vectors in (("user", USERS, found[0][:-1]), ("item", ITEMS, found[1])):
        as_stored = pa.array(vectors, pa.list_(pa.float64())).cast(pa.list_(pa.float32())).to_pylist()
        assert as_stored == joined(warehouse, side, ids, [at(99)] * len(ids))
    assert found[0][-1] == [0.0, 0.0, 0.0]


FEAST = """
import json, sys
from datetime import datetime, timezone
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Array, Float32
folder, shown, known = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
source = FileSource(path=f"{folder}/user_features.parquet", timestamp_field="event_timestamp",
                    created_timestamp_column="created_timestamp")
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
view = FeatureView(name="knowledge", entities=[user], schema=[Field(name="user_augment", dtype=Array(Float32))],
                   source=source, online=False)
store = FeatureStore(config=RepoConfig(project="p", provider="local", registry=f"{folder}/registry.db",
                                       offline_store={"type": "dask"}, entity_key_serialization_version=3))
store.apply([user, view])
entities = pd.DataFrame({"user_id": [name for name, _ in shown], "row": range(len(shown)),
                         "event_timestamp": pd.to_datetime([us for _, us in shown], unit="us", utc=True)})
more = {"filter_by_created_timestamp": True} if known else {}
found = store.get_historical_features(entity_df=entities, features=["knowledge:user_augment"], **more).to_df()
print(json.dumps({row: [float(number) for number in vector] for row, vector in zip(found["row"], found["user_augment"])
                  if vector is not None and not isinstance(vector, float)}))
"""


@pytest.mark.parametrize("clock", ["event", "known"])
def test_feast_joins_by_time_as_the_warehouse_does(warehouse: Warehouse, tmp_path: Path, at: Clock, clock: Any) -> None:
    interpreter("feast")
    warehouse.export("feast", tmp_path)
    moments = [at(second) for second in (9, 10, 11, 20, 21, 39, 40, 99)]
    shown = [(name, moment) for name in [*USERS, "stranger"] for moment in moments]
    micros = [(name, int(moment.timestamp() * 1_000_000)) for name, moment in shown]
    found = looked_up("feast", tmp_path, FEAST, tmp_path, json.dumps(micros), json.dumps(clock == "known"))
    # Feast leaves out the samples of an entity whose rows all lie in the future; there is nothing to see for them.
    vectors = pa.array([found.get(str(row)) for row in range(len(shown))], pa.list_(pa.float64()))
    as_stored = vectors.cast(pa.list_(pa.float32())).to_pylist()
    assert as_stored == joined(warehouse, "user", [name for name, _ in shown], [moment for _, moment in shown], clock)


EASYREC = """
import json, sys
import pyarrow as pa
from tzrec.datasets.csv_dataset import CsvReader
types = {"user_id": pa.string(), "user_augment": pa.string()}
found = {}
for batch in CsvReader(sys.argv[1], 2, selected_cols=list(types), column_types=types).to_batches():
    for name, vector in zip(batch["user_id"].to_pylist(), batch["user_augment"].to_pylist()):
        found[name] = [float(number) for number in vector.split("|")]
print(json.dumps(found))
"""


def test_torch_easyrec_reads_every_id_and_number(warehouse: Warehouse, tmp_path: Path, at: Clock) -> None:
    interpreter("easyrec")
    warehouse.export("easyrec", tmp_path)
    found = looked_up("easyrec", tmp_path, EASYREC, tmp_path / "user_augment.csv")
    as_stored = pa.array([found[name] for name in USERS], pa.list_(pa.float64())).cast(pa.list_(pa.float32()))
    assert as_stored.to_pylist() == joined(warehouse, "user", USERS, [at(99)] * len(USERS))
