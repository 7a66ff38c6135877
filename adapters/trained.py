"""A trained adapter as it is stored and published: weights, what they were made of, and a version that names them.

A folder holds `weights.safetensors` and `meta.json`; it is written whole and never changed.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Self, cast

import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from adapters.config import AdapterConfig as AdapterConfig
from adapters.experts import HybridExpertAdapter
from adapters.fit import EpochReport
from adapters.fusion import InterestFusion
from adapters.gates import GateUse
from adapters.texts import Partitions
from adapters.whitening import InputNorm
from warehouse.errors import CorruptWarehouse, InputError
from warehouse.keys import digest

FORMAT = 1

Kind = Literal["experts", "projection"]


class AdapterMeta(BaseModel, frozen=True, extra="forbid"):
    """What `meta.json` says of an adapter. Times are null for a projection, which saw no event."""

    format: int = FORMAT
    kind: Kind
    version: str
    weights_digest: str
    encoder_id: str
    user_dim: int
    item_dim: int
    config: AdapterConfig
    # Weights were fitted on [train_from, valid_from), chosen on [valid_from, holdout_from), and never saw the rest.
    train_from: datetime | None = None
    valid_from: datetime | None = None
    holdout_from: datetime | None = None
    train_samples: int = 0
    best_epoch: int | None = None
    epochs: tuple[EpochReport, ...] = ()
    # How the towers use their experts, over the training entities; empty for a projection.
    gates: dict[str, GateUse] = {}
    # Share of the variance of the mean label and of each collaborative factor that texts of a side foretell, in
    # cross-validation over training entities.
    foretold: dict[str, tuple[float, ...]] = {}


class Projection(nn.Module):
    """The label-free adapter: an aligned PCA whitening of each side to `out_dim` numbers."""

    def __init__(self, user_norm: InputNorm, item_norm: InputNorm) -> None:
        super().__init__()
        self.user_norm, self.item_norm = user_norm, item_norm
        self.user_dim, self.item_dim, self.out_dim = user_norm.in_dim, item_norm.in_dim, user_norm.out_dim

    def user(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.user_norm(x))

    def item(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.item_norm(x))


class Towers(nn.Module):
    """Published augment vectors [b, out] of text vectors [b, d]: (adapter(x) - centre) * scale.

    With a fusion, users' are made of their partitions' texts: `fused_user` is to the adapter what `user` is without.

    One centre per number and one scale per side, so that over the training entities a number is 0 on average and 1 in
    mean square: fit for any model, and zeros are a fair stand-in for missing knowledge. One scale for all numbers of a
    side keeps the dot product of both sides what training made it, up to a factor and what is constant per entity.
    """

    user_centre: Tensor
    item_centre: Tensor
    user_scale: Tensor
    item_scale: Tensor

    def __init__(self, adapter: HybridExpertAdapter | Projection, fusion: InterestFusion | None = None) -> None:
        super().__init__()
        self.adapter = adapter.eval().requires_grad_(False)
        self.fusion = None if fusion is None else fusion.eval().requires_grad_(False)
        for side in ("user", "item"):
            self.register_buffer(f"{side}_centre", torch.zeros(adapter.out_dim))
            self.register_buffer(f"{side}_scale", torch.ones(()))

    def user(self, x: Tensor) -> Tensor:
        assert self.fusion is None, "an adapter with fusion reads partitions"
        return (self.adapter.user(x) - self.user_centre) * self.user_scale

    def item(self, x: Tensor) -> Tensor:
        return (self.adapter.item(x) - self.item_centre) * self.item_scale

    def fused_user(self, partitions: Partitions) -> Tensor:
        """Augment vectors [b, out] of users' partitions, whose texts went through `norm_user`."""
        assert self.fusion is not None, "an adapter without fusion was asked to fuse"
        assert isinstance(self.adapter, HybridExpertAdapter), type(self.adapter)
        fused, _ = self.fusion(*partitions)
        return (self.adapter.mix_user(fused) - self.user_centre) * self.user_scale

    def standardise(self, user: Tensor, item: Tensor) -> None:
        """Set centres and scales from what the towers, not yet standardised, give [n, out] for the training entities.

        A side without rows stays as it is.
        """
        _standardise(user, self.user_centre, self.user_scale)
        _standardise(item, self.item_centre, self.item_scale)


@dataclass(frozen=True)
class TrainedAdapter:
    """Frozen towers and what is known of their making."""

    towers: Towers
    meta: AdapterMeta

    @classmethod
    def seal(cls, towers: Towers, config: AdapterConfig, kind: Kind, encoder_id: str, **history: object) -> Self:
        """A trained adapter with its version; `history` are further fields of `AdapterMeta`."""
        weights_digest = _digest_bytes(save_tensors(_tensors(towers)))
        dims = {"user_dim": towers.adapter.user_dim, "item_dim": towers.adapter.item_dim}
        named = {"kind": kind, "encoder_id": encoder_id, "weights_digest": weights_digest, **dims}
        version = digest({**named, "config": config.model_dump(mode="json")})
        return cls(towers, AdapterMeta.model_validate({**named, "version": version, "config": config, **history}))

    def save(self, folder: Path) -> None:
        """Write the folder whole: a reader sees all of it or nothing. One that holds this version is left alone.

        Raises InputError when the folder holds something else.
        """
        folder = Path(folder)
        if folder.exists():
            if type(self).load(folder).meta.version != self.meta.version:
                raise InputError(f"{folder} holds another adapter than {self.meta.version}. Give each its own folder.")
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".adapter-", dir=folder.parent))
        try:
            _write(staging / "weights.safetensors", save_tensors(_tensors(self.towers)))
            _write(staging / "meta.json", self.meta.model_dump_json(indent=2).encode())
            staging.chmod(0o755)
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, *, encoder_id: str | None = None, dim: int | None = None) -> Self:
        """The adapter in a folder, checked against the encoder it is to be used with where one is given.

        Raises InputError for a folder without an adapter, an unknown format, another encoder or another width, and
        CorruptWarehouse when the weights are not those that `meta.json` names.
        """
        meta = _read_meta(Path(folder))
        for side, found in (("user", meta.user_dim), ("item", meta.item_dim)):
            if dim is not None and dim != found:
                raise InputError(
                    f"The adapter in {folder} takes {side} vectors of {found} numbers, the encoder gives {dim}. "
                    "Run `lorestream train` with this encoder, or go back to the encoder it was trained with: "
                    f"{meta.encoder_id}."
                )
        if encoder_id is not None and encoder_id != meta.encoder_id:
            raise InputError(
                f"The adapter in {folder} was trained on vectors of {meta.encoder_id}, these are of {encoder_id}. "
                "Run `lorestream train` with this encoder."
            )
        try:
            content = (Path(folder) / "weights.safetensors").read_bytes()
        except OSError as error:
            raise CorruptWarehouse(f"The adapter in {folder} has no readable weights: {error}. Train again.") from error
        if _digest_bytes(content) != meta.weights_digest:
            raise CorruptWarehouse(
                f"{folder}/weights.safetensors is not what meta.json names ({meta.weights_digest}). "
                "Restore the folder from a copy, or train again."
            )
        towers = empty_towers(meta)
        towers.load_state_dict(load_tensors(content))
        return cls(towers, meta)


def build_adapter(
    config: AdapterConfig, user_dim: int, item_dim: int, norms: tuple[InputNorm, InputNorm] | None
) -> HybridExpertAdapter:
    """The untrained adapter of a config; `norms` are given exactly where `components` is."""
    assert (norms is None) == (config.components is None), config.components
    user_norm, item_norm = norms or (None, None)
    return HybridExpertAdapter(
        user_dim,
        item_dim,
        shared=config.shared,
        dedicated=config.dedicated,
        hidden=config.expert_hidden or None,
        out=config.out_dim,
        dropout=config.expert_dropout,
        user_norm=user_norm,
        item_norm=item_norm,
        linear_path=config.linear_path,
        batch_norm=config.batch_norm,
        one_gate=config.one_gate,
    )


def build_fusion(config: AdapterConfig, width: int) -> InterestFusion | None:
    """The untrained fusion of a config, over texts of `width` numbers; None where users' vectors are means."""
    return InterestFusion(width, attention=config.attention_dim) if config.fusion == "attention" else None


def empty_towers(meta: AdapterMeta) -> Towers:
    """Towers of the right shapes, to load a state dict into."""
    config = meta.config
    if meta.kind == "projection":
        user_norm = InputNorm.empty(meta.user_dim, config.out_dim)
        return Towers(Projection(user_norm, InputNorm.empty(meta.item_dim, config.out_dim)))
    norms = None
    if config.components is not None:
        norms = empty_norm(config, meta.user_dim), empty_norm(config, meta.item_dim)
    adapter = build_adapter(config, meta.user_dim, meta.item_dim, norms)
    return Towers(adapter, build_fusion(config, norms[0].out_dim if norms else meta.user_dim))


def empty_norm(config: AdapterConfig, dim: int) -> InputNorm:
    """An unfitted norm: at most as many components as numbers, and the collaborative directions with the mean label."""
    assert config.components is not None, config
    directions = 1 + config.collaborative if config.collaborative else 0
    return InputNorm.empty(dim, directions + min(config.components, dim))


def _standardise(augment: Tensor, centre: Tensor, scale: Tensor) -> None:
    if not len(augment):
        return
    centre.copy_(augment.mean(dim=0))
    spread = float((augment - centre).square().mean().sqrt())
    # A side whose vectors are all equal has no spread: its augment is all zeros whatever the scale.
    scale.fill_(1.0 / spread if spread > 0 else 1.0)


def _tensors(towers: Towers) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in towers.state_dict().items()}


def _digest_bytes(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read_meta(folder: Path) -> AdapterMeta:
    path = folder / "meta.json"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"There is no adapter in {folder}: meta.json is missing. Make one with `lorestream train`."
        ) from error
    except ValueError as error:
        raise CorruptWarehouse(f"{path} is not JSON: {error}. Restore it from a copy, or train again.") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path} has format {found!r}, this version of Lorestream reads {FORMAT}. "
            "Use the version that wrote it, or train again."
        )
    if isinstance(content.get("config"), dict):
        # Adapters made before there were collaborative directions have none.
        content["config"].setdefault("collaborative", 0)
    try:
        return AdapterMeta.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path} cannot be read: {error}. Use the version that wrote it, or train again.") from error
