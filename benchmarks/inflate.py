"""A copy of a small Qwen3 model that writes the same text at the cost of a larger one.

    python benchmarks/inflate.py SMALL_MODEL FOLDER [--hidden N --layers N --intermediate N --kv-heads N]

Width is padded with zeros. A norm over the padded width sees the mean square times d/D, so its weights are scaled by
sqrt(d/D) and its epsilon by d/D. Added heads come in whole groups of a KV head and are not read by the output
projection; added layers have output projections of zero. In float32 the logits agree to 1e-5; with sqrt(D/d) a power
of two, as by default, bfloat16 loses nothing by the scaling either.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from safetensors.torch import load_file, save_file
from torch import Tensor


class Inflation(BaseModel, frozen=True, extra="forbid"):
    """The sizes of the copy; by default about half a billion parameters."""

    hidden: int = Field(default=1024, ge=1)
    layers: int = Field(default=32, ge=1)
    intermediate: int = Field(default=4608, ge=1)
    kv_heads: int = Field(default=4, ge=1)


def inflate(small: Path, folder: Path, sizes: Inflation) -> int:
    """Write the copy of the model in `small` to `folder`; its number of parameters.

    Raises ValueError for a model that is not Qwen3 with tied embeddings, or sizes below its own.
    """
    config = json.loads((small / "config.json").read_text())
    if config["model_type"] != "qwen3" or not config["tie_word_embeddings"]:
        raise ValueError(f"{small} is no Qwen3 model with tied embeddings")
    own = (config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"])
    if any(new < old for new, old in zip((sizes.hidden, sizes.layers, sizes.intermediate), own, strict=True)):
        raise ValueError(f"{sizes} is smaller than {small} (hidden, layers, intermediate = {own})")
    weights = load_file(small / "model.safetensors")
    grown = dict(_grow(weights, config, sizes))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(grown, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(config, sizes), indent=2))
    for file in small.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "config.json" and "safetensors" not in file.name:
            shutil.copy(file, folder / file.name)
    return sum(weight.numel() for weight in grown.values())


def largest_difference(a: Path, b: Path, tokens: Tensor) -> float:
    """The largest difference between the logits of two models in float32, for token ids [b, n]."""
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        first, second = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)(tokens).logits
            for path in (a, b)
        )
    return float((first - second).abs().max())


def _config(config: dict[str, object], sizes: Inflation) -> dict[str, object]:
    group = int(str(config["num_attention_heads"])) // int(str(config["num_key_value_heads"]))
    return config | {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "intermediate_size": sizes.intermediate,
        "num_key_value_heads": sizes.kv_heads,
        "num_attention_heads": sizes.kv_heads * group,
        "rms_norm_eps": float(str(config["rms_norm_eps"])) * int(str(config["hidden_size"])) / sizes.hidden,
        "layer_types": ["full_attention"] * sizes.layers,
        "max_window_layers": sizes.layers,
    }


def _grow(weights: dict[str, Tensor], config: dict[str, int], sizes: Inflation) -> Iterator[tuple[str, Tensor]]:
    width, inner = sizes.hidden, sizes.intermediate
    shrink = math.sqrt(config["hidden_size"] / width)
    head = config["head_dim"]
    keys = sizes.kv_heads * head
    queries = keys * (config["num_attention_heads"] // config["num_key_value_heads"])
    shapes = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    like = weights["model.embed_tokens.weight"]
    yield "model.embed_tokens.weight", _padded(like, (len(like), width))
    yield "model.norm.weight", _padded(weights["model.norm.weight"] * shrink, (width,))
    generator = torch.Generator().manual_seed(0)
    for layer in range(sizes.layers):
        prefix = f"model.layers.{layer}."
        if layer < config["num_hidden_layers"]:
            for name, shape in shapes.items():
                yield f"{prefix}{name}.weight", _padded(weights[f"{prefix}{name}.weight"], shape)
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{prefix}{name}.weight", _padded(weights[f"{prefix}{name}.weight"] * shrink, (width,))
            for name in ("self_attn.q_norm", "self_attn.k_norm"):
                yield f"{prefix}{name}.weight", weights[f"{prefix}{name}.weight"]
            continue
        for name, shape in shapes.items():
            # Zeros only where they end the layer's effect: a kernel must not find the rest any easier.
            ends = name in ("self_attn.o_proj", "mlp.down_proj")
            full = torch.zeros(shape) if ends else torch.randn(shape, generator=generator) * 0.02
            yield f"{prefix}{name}.weight", full.to(like.dtype)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", torch.ones(width, dtype=like.dtype)
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            yield f"{prefix}{name}.weight", torch.ones(head, dtype=like.dtype)


def _padded(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`weight` in the first corner of a tensor of zeros."""
    full = torch.zeros(shape, dtype=weight.dtype)
    full[tuple(slice(0, size) for size in weight.shape)] = weight
    return full


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path)
    parser.add_argument("folder", type=Path)
    for name, field in Inflation.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=field.default)
    given = vars(parser.parse_args())
    small, folder = given.pop("small"), given.pop("folder")
    parameters = inflate(small, folder, Inflation(**given))
    print(f"{parameters / 1e6:.0f} million parameters in {folder}")


if __name__ == "__main__":
    main()
