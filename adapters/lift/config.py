"""What a lift measures: protocols, backbones, arms and seeds, and how each model is fitted. Free to import."""

from typing import Literal, get_args

from pydantic import BaseModel, Field

from adapters.config import Backbone, CtrConfig

Protocol = Literal["kar", "time", "cold_items", "cold_users"]

Arm = Literal[
    "base_unmasked",
    "base",
    "base_history",
    "titles",
    "histories",
    "random",
    "shuffled",
    "facts",
    "group_ids",
    "groups",
    "groups_shuffled",
    "mlp",
    "full",
    "full_titles",
    "frozen",
    "wrong_10",
    "wrong_30",
    "wrong_50",
    "stale_30",
    "stale_90",
    "stale_360",
]

ARMS: dict[Arm, str] = {
    "base_unmasked": "no knowledge, item ids never hidden in training",
    "base": "no knowledge; like all arms below, item ids are hidden at random in training",
    "base_history": "no knowledge, but as many events as the LLM was shown, and demographics",
    "titles": "title and attributes of items embedded, no LLM",
    "histories": "titles, and what the LLM was shown of a user embedded, without its answer",
    "random": "as full, with random vectors for the texts",
    "shuffled": "as full, with the texts dealt to other items, users and groups",
    "facts": "texts of the LLM about items",
    "group_ids": "no text, but the ids of the user's groups",
    "groups": "texts of the LLM about the user's groups",
    "groups_shuffled": "the same groups, with each other's texts",
    "mlp": "as full, with a plain MLP of equal width for the experts",
    "full": "all texts of the LLM through the hybrid-expert adapter",
    "full_titles": "as full, with titles and attributes beside the LLM's texts about items",
    "frozen": "as full, but the adapter was trained with another model and is not trained any more",
    "wrong_10": "as full, 10 % of items and users with another's texts",
    "wrong_30": "as full, 30 % of items and users with another's texts",
    "wrong_50": "as full, 50 % of items and users with another's texts",
    "stale_30": "as full, user texts joined 30 days late",
    "stale_90": "as full, user texts joined 90 days late",
    "stale_360": "as full, user texts joined 360 days late",
}

BACKBONES: tuple[Backbone, ...] = get_args(Backbone)


class TowerConfig(BaseModel, frozen=True, extra="forbid"):
    """The adapter of one cell, trained jointly with its backbone.

    KAR's exact layer is `components=None, linear_path=False, head_weight=0, dropout=0`. The default was chosen by
    validation on cold items of MovieLens-1M (2,000 users teach, DeepFM, item texts and titles, two draws of items): the
    AUC on validation items is 0.652 without knowledge, 0.671 with collaborative directions alone, and 0.664 with 32
    principal components beside them. 64 components alone reach 0.657 on the first draw, where those reach 0.671.
    """

    # Principal components of the texts, whitened, fitted on what training events read; None: the raw vectors.
    components: int | None = Field(0, ge=0)
    # Collaborative directions of the texts beside them, as in `AdapterConfig.collaborative`.
    collaborative: int = Field(16, ge=0)
    whitening: float = Field(0.5, ge=0, le=0.5)
    out_dim: int = Field(8, ge=1)
    shared: int = Field(2, ge=0)
    dedicated: int = Field(2, ge=0)
    hidden: int = Field(32, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    linear_path: bool = True
    weight_decay: float = Field(1.0, ge=0)
    # Weight of the loss of a linear head on knowledge alone, as in training the published adapter.
    head_weight: float = Field(0.3, ge=0)


class MatrixConfig(BaseModel, frozen=True, extra="forbid"):
    """A matrix of cells: protocol x backbone x arm x seed. `arms` None: all that the data allow."""

    protocols: tuple[Protocol, ...] = Field(("kar", "time", "cold_items", "cold_users"), min_length=1)
    backbones: tuple[Backbone, ...] = Field(BACKBONES, min_length=1)
    arms: tuple[Arm, ...] | None = None
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    # A random sample of so many users; None: all.
    users: int | None = Field(None, ge=10)
    # Of these, so many whose events may teach; None: all. Fitting costs time, and intervals depend on who is judged.
    train_users: int | None = Field(None, ge=10)
    # Newest liked and newest other events that a model sees; KAR's is 5.
    history_length: int = Field(20, ge=1)
    kar_history_length: int = Field(5, ge=1)
    # What `base_history` sees: as many as the LLM is shown.
    long_history_length: int = Field(30, ge=1)
    ctr: CtrConfig = CtrConfig(
        dropout=0.4, weight_decay=0.5, batch_size=2048, max_epochs=10, patience=2, learning_rate=3e-3
    )
    # Where only unseen items are judged, hiding more ids teaches every arm more; 0.3 elsewhere (`ctr.id_mask`).
    cold_id_mask: float = Field(0.7, ge=0, lt=1)
    tower: TowerConfig = TowerConfig()
    # The model with which the adapter of the arm `frozen` is trained before it meets the others.
    frozen_with: Backbone = "DeepFM"
    bootstrap_draws: int = Field(300, ge=10)


# For a first look: two kinds of backbone, three seeds, few users, small models that see short histories.
QUICK: dict[str, object] = {
    "backbones": ("DIN", "DCNMix"),
    "protocols": ("kar", "time", "cold_items"),
    "seeds": (0, 1, 2),
    "users": 2000,
    "train_users": 400,
    "history_length": 5,
    "ctr": CtrConfig(
        embedding_dim=8,
        hidden=(32, 16),
        dropout=0.2,
        weight_decay=0.5,
        batch_size=2048,
        max_epochs=6,
        patience=1,
        learning_rate=4e-3,
    ),
    "bootstrap_draws": 200,
}
