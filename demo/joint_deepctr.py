"""Joint mode with DeepCTR-Torch: its DIN or DCNMix trains Lorestream's fusion and adapter along.

    python -m demo.joint_deepctr demo-output DIN        (after `make demo`; or DCNMix)

The augment vectors enter as one DenseFeat, which gradients pass through.
"""

import argparse

import torch
from torch import Tensor, nn

from adapters.backbone import load_library
from adapters.joint import partitions_of
from demo.joint_torch import FIELD, HISTORY, Batch, Norms, demo_folder, train_jointly
from lorestream import HybridExpertAdapter, InterestFusion


class KnowingBackbone(nn.Module):
    """Logits [b] of the library's `backbone` over item id, liked history and both augment vectors with their flags."""

    def __init__(self, backbone: str, items: int, norms: Norms) -> None:
        super().__init__()
        text_dim = norms[0].in_dim
        # Like `import deepctr_torch`, without its call to PyPI.
        load_library()
        from deepctr_torch import models
        from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

        table = SparseFeat("item", items + 1, FIELD)
        history = SparseFeat("hist_item", items + 1, FIELD, embedding_name="item")
        length = "hist_length" if backbone == "DIN" else None
        columns = [
            table,
            VarLenSparseFeat(history, HISTORY, "mean", length),
            DenseFeat("knowledge", 2 * FIELD + 2),
        ]
        # A regression task makes the library return logits.
        options = {"task": "regression", "dnn_hidden_units": (64, 32), "device": "cpu"}
        if backbone == "DIN":
            self.net: nn.Module = models.DIN(columns, ["item"], **options)
        else:
            self.net = getattr(models, backbone)(columns, columns, **options)
        self.places = list(self.net.feature_index)  # type: ignore[arg-type]
        self.fusion = InterestFusion(text_dim, candidate_dim=text_dim)
        self.adapter = HybridExpertAdapter(
            text_dim, text_dim, dedicated=2, out=FIELD, user_norm=norms[0], item_norm=norms[1], linear_path=True
        )
        self.adapter.require_width(FIELD)

    def forward(self, batch: Batch) -> Tensor:
        user, has_user = self.fusion(*partitions_of(batch), batch["item"], batch["has_item"])
        has_item = batch["has_item"].float()[:, None]
        a_u, a_i = self.adapter(user, batch["item"])
        parts = {
            "item": batch["item_code"].float()[:, None],
            "hist_item": batch["history"],
            "hist_length": (batch["history"] > 0).sum(dim=1, keepdim=True).float(),
            "knowledge": torch.cat([a_u, a_i * has_item, has_user[:, None], has_item], dim=1),
        }
        logits: Tensor = self.net(torch.cat([parts[name] for name in self.places], dim=1))
        return logits.reshape(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train DIN or DCNMix jointly with Lorestream's modules.")
    parser.add_argument("folder", type=demo_folder, help="holds inputs/behaviours.parquet and warehouse/")
    parser.add_argument("backbone", choices=("DIN", "DCNMix"))
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    _, reached = train_jointly(
        given.folder, lambda items, norms: KnowingBackbone(given.backbone, items, norms), given.epochs
    )
    print(f"{given.backbone}, AUC on the newest fifth of the events: {reached:.4f}")


if __name__ == "__main__":
    main()
