"""Settings of adapters and of the CTR models around them; free to import, so that a command line can read them."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

Backbone = Literal["DeepFM", "xDeepFM", "AutoInt", "DCN", "DCNMix", "FiBiNET", "DIN", "DIEN"]


class CtrConfig(BaseModel, frozen=True, extra="forbid"):
    """A CTR model and how it is fitted."""

    # DeepFM fits as well as DCNMix on small worlds, in half the time.
    backbone: Backbone = "DeepFM"
    embedding_dim: int = Field(16, ge=1)
    hidden: tuple[int, ...] = Field((64, 32), min_length=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    learning_rate: float = Field(2e-3, gt=0)
    # AdamW bounds a weight by about 1 / weight_decay whatever the number of steps. With less of this or of dropout, a
    # model trusts knowledge on new items as on those it was fitted on: no worse an AUC, but a worse log loss.
    weight_decay: float = Field(1.0, ge=0)
    batch_size: int = Field(1024, ge=1)
    max_epochs: int = Field(30, ge=1)
    # Epochs without a better validation log loss before fitting ends; the best epoch's weights are kept.
    patience: int = Field(3, ge=1)
    # Share of training samples whose item id is hidden. Without it a model leans on ids so much that anything helps it
    # on new items, and knowledge would look better than it is: on MovieLens-1M, masking alone took the AUC of new items
    # from 0.704 to 0.728.
    id_mask: float = Field(0.3, ge=0, lt=1)
    seed: int = 0
    device: str = "cpu"


Form = Literal["whitened", "kar", "mindspore", "laser"]

_KAR: dict[str, object] = {
    "components": None,
    "collaborative": 0,
    "linear_path": False,
    "knowledge_loss_weight": 0.0,
    "dedicated": 6,
}
# What the published forms set, where the file does not say otherwise; `adapters.experts` describes them.
_FORMS: dict[str, dict[str, object]] = {
    "kar": _KAR,
    "mindspore": {**_KAR, "batch_norm": True},
    "laser": {**_KAR, "shared": 4, "dedicated": 0, "expert_hidden": 0, "out_dim": 64, "one_gate": True},
}


class AdapterConfig(CtrConfig, frozen=True, extra="forbid"):
    """A frozen adapter and the training that makes it.

    `form` sets what of the fields below is not given: `kar` is KAR's exact layer and objective.
    """

    form: Form = "whitened"
    # Of a user's partitions up to a row's own: their mean, or LIBER's attention over their texts.
    fusion: Literal["mean", "attention"] = "mean"
    attention_dim: int = Field(32, ge=1)
    # What vectors are trained for: a CTR model's log loss, or likeness to collaborative embeddings, which belongs to no
    # CTR model (`adapters.align`).
    objective: Literal["ctr", "align"] = "ctr"
    # Of the contrastive loss, beside `knowledge_loss_weight`. Collaborative embeddings of one user or item are mostly
    # noise, and vectors that follow them closely have learned it by heart within an epoch: on the demo's world weight 1
    # reached a validation AUC of 0.627, 0.1 reached 0.652, and next to none 0.663 (one seed).
    align_weight: float = Field(0.1, gt=0)
    align_temperature: float = Field(0.1, gt=0)
    out_dim: int = Field(32, ge=1)
    shared: int = Field(2, ge=0)
    dedicated: int = Field(2, ge=0)
    # 0: experts of one layer.
    expert_hidden: int = Field(128, ge=0)
    batch_norm: bool = False
    one_gate: bool = False
    # Principal components of the texts that the towers read; None: the raw vectors, as in KAR. Few are enough where the
    # texts' largest directions are those that matter. In sentence embeddings they need not be: of the demo's texts,
    # 32 components tell next to nothing about tastes.
    components: int | None = Field(256, ge=0)
    # Directions of the texts that the towers read beside the components: ridge regressions of so many collaborative
    # factors, and of the mean label (`adapters.collaborative`); 0: none. With raw vectors (`components` None) none.
    collaborative: int = Field(16, ge=0)
    # 0.5 whitens fully, and noise in small components weighs as much as content; 0 leaves them too small to learn from.
    whitening: float = Field(0.25, ge=0, le=0.5)
    linear_path: bool = True
    expert_dropout: float = Field(0.0, ge=0, lt=1)
    # Weight of the loss of a linear head on knowledge alone, beside the CTR model's. Without it the CTR model explains
    # its training samples by ids and histories before the towers have learned to meet.
    knowledge_loss_weight: float = Field(1.0, ge=0)
    learning_rate: float = Field(4e-3, gt=0)
    adapter_weight_decay: float = Field(4.0, ge=0)
    validation_fraction: float = Field(0.1, gt=0, lt=0.5)
    holdout_fraction: float = Field(0.1, gt=0, lt=0.5)
    history_length: int = Field(20, ge=1)
    # Training samples with knowledge on some side, below which fitting thousands of weights is no better than chance.
    min_samples: int = Field(500, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _take_form(cls, given: Any) -> Any:
        """Fields of the named form, under those that are given."""
        if not isinstance(given, dict):
            return given
        return {**_FORMS.get(str(given.get("form")), {}), **given}

    @model_validator(mode="after")
    def _towers_read_something(self) -> Self:
        if self.components == 0 and self.collaborative == 0:
            raise ValueError("components and collaborative are both 0, and then the towers read nothing; raise one")
        return self

    @model_validator(mode="after")
    def _one_gate_weighs_shared_experts(self) -> Self:
        if self.one_gate and self.dedicated:
            raise ValueError(f"one gate for both sides weighs shared experts only; dedicated = {self.dedicated}, set 0")
        return self
