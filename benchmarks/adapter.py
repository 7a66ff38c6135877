"""What the adapter costs: rows/s of training and materialising against a plain MLP, and the time of a served DIN.

    python benchmarks/adapter.py [--json] [--rows N] [--batches N] [--repeats N] [--threads N]

Training: a step is forward, backward and AdamW over a batch of 1,024 pairs of text vectors (384 numbers), the loss that
of the augment vectors' dot product. Materialising: text vectors of one side to rows of 32 numbers. The rival has an MLP
for each side, its hidden layer as wide as all experts of a tower together, so that widths are equal and the gate is the
difference. `whitened` is the default form, with a frozen reduction to 273 numbers in front: in training that is done
once, so it and its rival begin behind it; in materialising the rival reads raw vectors. `whitened_fused` trains on 8
partitions of each user by attention.

Serving: DeepCTR-Torch's DIN (fields of 32, history of 20, layers 200 and 80) over batches of 256 candidates, with and
without the two augment vectors of 32 numbers as dense fields, on the same batches.

Contestants take turns; rates are medians over repeats.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from adapters.backbone import load_library
from adapters.config import AdapterConfig, Form
from adapters.experts import HybridExpertAdapter
from adapters.fusion import InterestFusion
from adapters.materialise import materialise_items
from adapters.trained import Towers, TrainedAdapter, build_adapter, empty_norm
from adapters.whitening import InputNorm

DIM, BATCH, PARTITIONS = 384, 1024, 8
FIELD, HISTORY, CANDIDATES, ITEMS = 32, 20, 256, 50_000


class PlainTowers(nn.Module):
    """The rival of `config`'s adapter: per side Linear, ReLU, Linear, the hidden layer as wide as all its experts."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        width = read_width(config)
        hidden = (config.shared + config.dedicated) * config.expert_hidden
        self.user, self.item = (
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, config.out_dim)) for _ in range(2)
        )

    def forward(self, x_u: Tensor, x_i: Tensor) -> tuple[Tensor, Tensor]:
        return self.user(x_u), self.item(x_i)


class FusedTowers(nn.Module):
    """The adapter behind an attention over a user's partitions, both of which read reduced vectors."""

    def __init__(self, adapter: HybridExpertAdapter, width: int) -> None:
        super().__init__()
        self.adapter, self.fusion = adapter, InterestFusion(width)

    def forward(self, partitions: Tensor, x_i: Tensor) -> tuple[Tensor, Tensor]:
        known = torch.ones(partitions.shape[:2], dtype=torch.bool)
        fused, _ = self.fusion(partitions, None, known, torch.zeros_like(known), torch.rand(partitions.shape[:2]) * 300)
        return self.adapter.mix_user(fused), self.adapter.mix_item(x_i)


def config_of(form: Form) -> AdapterConfig:
    return AdapterConfig.model_validate({"form": form})


def read_width(config: AdapterConfig) -> int:
    """How many numbers the towers read of a text."""
    return DIM if config.components is None else empty_norm(config, DIM).out_dim


def adapter_of(config: AdapterConfig) -> HybridExpertAdapter:
    """The untrained adapter of a config, its norms fitted on random vectors."""
    rng = np.random.default_rng(0)
    norms = None
    if config.components is not None:
        fitted = [
            InputNorm.whiten(rng.normal(size=(1000, DIM)), config.components, config.whitening).beside(
                rng.normal(size=(DIM, 1 + config.collaborative))
            )
            for _ in "ui"
        ]
        norms = fitted[0], fitted[1]
    return build_adapter(config, DIM, DIM, norms)


def training_step(module: nn.Module, x_u: Tensor, x_i: Tensor) -> Callable[[], None]:
    """One step of joint training of `module` on a fixed batch."""
    labels = (torch.rand(len(x_i)) < 0.5).float()
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3)

    def step() -> None:
        a_u, a_i = module(x_u, x_i)
        loss = nn.functional.binary_cross_entropy_with_logits((a_u * a_i).sum(dim=1), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def training_rates(batches: int, repeats: int) -> dict[str, float]:
    """Pairs per second by contestant."""
    torch.manual_seed(0)
    whitened = config_of("whitened")
    width = read_width(whitened)
    raw, reduced = torch.randn(2, BATCH, DIM), torch.randn(2, BATCH, width)

    def normed(adapter: HybridExpertAdapter) -> nn.Module:
        # In training the frozen norm's output is computed once, so a step begins behind it.
        adapter.user_norm = adapter.item_norm = None
        adapter.user_dim = adapter.item_dim = width
        return adapter

    steps = {
        "kar": training_step(adapter_of(config_of("kar")), *raw),
        "kar_mlp": training_step(PlainTowers(config_of("kar")), *raw),
        "laser": training_step(adapter_of(config_of("laser")), *raw),
        "whitened": training_step(normed(adapter_of(whitened)), *reduced),
        "whitened_mlp": training_step(PlainTowers(whitened), *reduced),
        "whitened_fused": training_step(
            FusedTowers(adapter_of(whitened), width), torch.randn(BATCH, PARTITIONS, width), reduced[1]
        ),
    }

    def repeated(step: Callable[[], None]) -> None:
        for _ in range(batches):
            step()

    return rates({name: partial(repeated, step) for name, step in steps.items()}, batches * BATCH, repeats)


def materialising_rates(rows: int, repeats: int) -> dict[str, float]:
    """Rows per second of one side by contestant."""
    vectors = np.random.default_rng(0).normal(size=(rows, DIM)).astype(np.float32)
    runs: dict[str, Callable[[], object]] = {}
    forms: tuple[Form, ...] = ("kar", "whitened")
    for form in forms:
        config = config_of(form)
        trained = TrainedAdapter.seal(Towers(adapter_of(config)), config, "experts", "encoder")
        plain = PlainTowers(config.model_copy(update={"components": None})).eval()
        runs[form] = partial(materialise_items, trained, vectors)
        runs[f"{form}_mlp"] = partial(plain_rows, plain, vectors)
    return rates(runs, rows, repeats)


def plain_rows(plain: PlainTowers, vectors: np.ndarray) -> np.ndarray:
    """Rows out of the rival's item side, in batches as large as `materialise_items` takes."""
    with torch.inference_mode():
        made = [plain.item(torch.from_numpy(vectors[lo : lo + 8192])).numpy() for lo in range(0, len(vectors), 8192)]
    return np.concatenate(made)


def rates(runs: dict[str, Callable[[], object]], rows: int, repeats: int) -> dict[str, float]:
    """Rows per second of each run: all are run once to warm up, then in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: rows / median(taken) for name, taken in seconds.items()}


def din(knowledge: bool) -> nn.Module:
    """The library's DIN, with or without two more dense fields."""
    load_library()
    inputs, models = import_module("deepctr_torch.inputs"), import_module("deepctr_torch.models")
    item = inputs.SparseFeat("item", ITEMS, FIELD)
    history = inputs.SparseFeat("hist_item", ITEMS, FIELD, embedding_name="item")
    columns = [item, inputs.VarLenSparseFeat(history, HISTORY, "mean", "hist_length")]
    if knowledge:
        columns += [inputs.DenseFeat("user_augment", FIELD), inputs.DenseFeat("item_augment", FIELD)]
    model: nn.Module = models.DIN(columns, ["item"], dnn_hidden_units=(200, 80), device="cpu")
    return model.eval()


def serving_times(calls: int) -> dict[str, float]:
    """Milliseconds per batch of candidates at the median and the 99th percentile, by contestant."""
    rng = np.random.default_rng(0)
    models = {"din": din(False), "din_knowledge": din(True)}
    taken: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for call in range(calls + 20):
            shared = np.concatenate(
                [
                    rng.integers(1, ITEMS, (CANDIDATES, 1)),
                    np.tile(rng.integers(1, ITEMS, (1, HISTORY)), (CANDIDATES, 1)),
                    np.full((CANDIDATES, 1), HISTORY),
                ],
                axis=1,
            )
            vectors = rng.normal(size=(CANDIDATES, 2 * FIELD))
            for name, model in models.items():
                parts = [shared, vectors] if name == "din_knowledge" else [shared]
                # What a server does per request: put the fields together, then call the model.
                began = time.perf_counter()
                model(torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32)))
                if call >= 20:
                    taken[name].append((time.perf_counter() - began) * 1e3)
    return {
        f"{name}_{label}_ms": float(np.percentile(times, share))
        for name, times in taken.items()
        for label, share in (("p50", 50), ("p99", 99))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to materialise")
    parser.add_argument("--batches", type=int, default=20, help="training steps per repeat")
    parser.add_argument("--calls", type=int, default=1000, help="served batches per contestant")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    training = training_rates(given.batches, given.repeats)
    materialising = materialising_rates(given.rows, given.repeats)
    serving = serving_times(given.calls)
    found: dict[str, object] = {
        "threads": given.threads,
        "torch": torch.__version__,
        "training_rows_per_s": {name: round(rate) for name, rate in training.items()},
        "training_ratio_to_mlp": {
            name: round(training[name] / training[f"{name}_mlp"], 3) for name in ("kar", "whitened")
        },
        "materialising_rows_per_s": {name: round(rate) for name, rate in materialising.items()},
        "materialising_ratio_to_mlp": {
            name: round(materialising[name] / materialising[f"{name}_mlp"], 3) for name in ("kar", "whitened")
        },
        "serving": {name: round(value, 3) for name, value in serving.items()},
        "serving_p50_ratio": round(serving["din_knowledge_p50_ms"] / serving["din_p50_ms"], 3),
    }
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(name)
        for key, figure in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"  {key:28} {figure:>14,}" if isinstance(figure, int | float) else f"  {key:28} {figure:>14}")


if __name__ == "__main__":
    main()
