"""What can be known of a model without loading it: its identity, its special tokens, whether it has a chat template.

Reads files only, so that planning, dry runs and `status` cost no engine.
"""

import json
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from jinja2 import Environment, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser

from warehouse.errors import InputError
from warehouse.keys import DIGEST_BYTES

# Files that decide which tokens a prompt becomes and what the weights mean; read whole.
_CONFIG_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.txt")
_WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth")

_WHOLE_FILE_BYTES = 64 << 20
_CHUNKS = 64
_CHUNK_BYTES = 64 << 10
_TENSOR_BYTES = 4 << 10

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelInfo:
    """A model as it lies on this machine.

    `name` is the last part of the folder's path or of the Hugging Face id, so that no machine's paths enter a key and a
    downloaded copy shares its keys with the id; `revision` is a digest of the content and tells two models of one name
    apart. `context_length` is None where the config does not say it.
    """

    name: str
    path: Path
    revision: str
    special_tokens: tuple[str, ...]
    has_chat_template: bool
    context_length: int | None


@dataclass(frozen=True)
class TokenizerInfo:
    """Where a tokenizer's files lie, and the tokens in it that no text may hold."""

    path: Path
    special_tokens: tuple[str, ...]


def describe_model(model: str) -> ModelInfo:
    """What the files of `model`, a folder or a Hugging Face id in the local cache, say about it.

    Raises InputError where there is no such model, the folder lacks config, weights or tokenizer, or its tokenizer or
    chat template cannot be used.
    """
    name, path = _locate(model)
    if not (path / "config.json").is_file():
        raise InputError(
            f"`{model}` holds no config.json, so it is no Hugging Face model folder. "
            "Name the folder that holds config.json, the weights and the tokenizer."
        )
    weights = _weight_files(path)
    if not weights:
        raise InputError(
            f"`{model}` holds no weights ({', '.join(_WEIGHT_PATTERNS)}). Download the model completely, or name the "
            "folder that holds them."
        )
    config = read_json(path / "config.json")
    tokenizer = describe_tokenizer(model)
    return ModelInfo(
        name=name,
        path=path,
        revision=_revision(path, weights),
        special_tokens=tokenizer.special_tokens,
        has_chat_template=_has_chat_template(path, read_json(path / "tokenizer_config.json")),
        context_length=_context_length(config),
    )


def describe_tokenizer(model: str) -> TokenizerInfo:
    """What the tokenizer's files of `model`, a folder or a Hugging Face id in the local cache, say about it.

    Raises InputError where there is no such model, or its tokenizer is missing or cannot be used.
    """
    _name, path = _locate(model)
    if not any((path / file).is_file() for file in _TOKENIZER_FILES):
        raise InputError(
            f"`{model}` holds no tokenizer ({', '.join(_TOKENIZER_FILES)}). Copy the tokenizer's files into the folder."
        )
    tokenizer, tokenizer_config = read_json(path / "tokenizer.json"), read_json(path / "tokenizer_config.json")
    if (path / "tokenizer.json").is_file() and not (
        isinstance(tokenizer.get("model"), dict) and isinstance(tokenizer.get("added_tokens"), list)
    ):
        raise InputError(
            f"`{model}` has no usable tokenizer: {path / 'tokenizer.json'} holds no `model` and `added_tokens`. "
            "Download or copy the model again."
        )
    return TokenizerInfo(path, _special_tokens(tokenizer, tokenizer_config))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is no such file. Raises InputError where it is not a JSON object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}. Download or copy the model again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object. Download or copy the model again.")
    return value


def tokenizer_digest(path: Path) -> str:
    """32 hex digits naming the tokenizer of the model folder `path`: equal ones turn a text into the same tokens."""
    digest = blake2b(digest_size=DIGEST_BYTES)
    for name in _TOKENIZER_FILES:
        if (path / name).is_file():
            content = (path / name).read_bytes()
            digest.update(f"{name}:{len(content)}:".encode())
            digest.update(content)
    return digest.hexdigest()


def _locate(model: str) -> tuple[str, Path]:
    path = Path(model).expanduser()
    if path.is_dir():
        resolved = path.resolve()
        return resolved.name, resolved
    if path.exists():
        raise InputError(f"`{model}` is a file. Name the folder that holds the model's config.json and weights.")
    if not _HUB_ID.fullmatch(model):
        raise InputError(
            f"There is no model at `{model}`. Give the path of a folder with config.json, weights and tokenizer, or "
            "the id of a model in the local Hugging Face cache."
        )
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # Never downloads: what a run costs and which revision it uses should not depend on the network.
        snapshot = Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"`{model}` is neither a folder nor a model in the local Hugging Face cache ({constants.HF_HUB_CACHE}). "
            f"Give the path of a model folder, or fetch it once with `hf download {model}`."
        ) from error
    return model.rsplit("/", 1)[-1], snapshot


def _weight_files(path: Path) -> list[Path]:
    for pattern in _WEIGHT_PATTERNS:
        if found := sorted(path.glob(pattern)):
            return found
    return []


def _revision(path: Path, weights: list[Path]) -> str:
    digest = blake2b(digest_size=DIGEST_BYTES)
    for name in _CONFIG_FILES:
        file = path / name
        if file.is_file():
            content = file.read_bytes()
            digest.update(f"{name}:{len(content)}:".encode())
            digest.update(content)
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            for start, length in _samples(stream, file, size):
                stream.seek(start)
                digest.update(stream.read(length))
    return digest.hexdigest()


def _samples(stream: BinaryIO, file: Path, size: int) -> list[tuple[int, int]]:
    """(offset, bytes) of the parts of a weight file that stand for it.

    Small files are read whole. Of a large one: evenly spaced chunks, and for safetensors also the header and the
    middle of every tensor, so that a fine-tune of a single layer is another revision while 10 GB cost milliseconds.
    """
    if size <= _WHOLE_FILE_BYTES:
        return [(0, size)]
    stride = (size - _CHUNK_BYTES) / (_CHUNKS - 1)
    parts = [(int(i * stride), _CHUNK_BYTES) for i in range(_CHUNKS)]
    if file.suffix == ".safetensors":
        header_bytes = 8 + int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_bytes - 8))
        parts.append((0, header_bytes))
        for name in sorted(header.keys() - {"__metadata__"}):
            begin, end = header[name]["data_offsets"]
            length = min(_TENSOR_BYTES, end - begin)
            parts.append((header_bytes + begin + (end - begin - length) // 2, length))
    return parts


class _GenerationBlock(Extension):
    """Parses `{% generation %}`, with which chat templates mark the model's own turns for training."""

    # Jinja declares it of instances, so it can be no ClassVar.
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _has_chat_template(path: Path, tokenizer_config: dict[str, Any]) -> bool:
    """Whether the model has a chat template. Raises InputError for one that does not parse."""
    file = path / "chat_template.jinja"
    try:
        if file.is_file():
            given: object = file.read_text(encoding="utf-8")
        else:
            given = read_json(path / "chat_template.json").get("chat_template") or tokenizer_config.get("chat_template")
        named = [entry.get("template") for entry in given if isinstance(entry, dict)] if isinstance(given, list) else []
        environment = Environment(extensions=["jinja2.ext.loopcontrols", _GenerationBlock])
        for template in named or [given]:
            if isinstance(template, str):
                environment.parse(template)
    except (TemplateSyntaxError, UnicodeDecodeError) as error:
        raise InputError(
            f"The chat template of the model in {path} cannot be used: {error}. Download or copy the model again."
        ) from error
    return bool(given)


def _special_tokens(tokenizer: dict[str, Any], tokenizer_config: dict[str, Any]) -> tuple[str, ...]:
    found = {t["content"] for t in tokenizer.get("added_tokens") or [] if t.get("special")}
    found |= {t["content"] for t in (tokenizer_config.get("added_tokens_decoder") or {}).values() if t.get("special")}
    for key, value in tokenizer_config.items():
        if key.endswith("_token") or key in ("additional_special_tokens", "extra_special_tokens"):
            values = value.values() if isinstance(value, dict) and "content" not in value else value
            for token in values if not isinstance(values, (str, dict)) and values is not None else [values]:
                text = token.get("content") if isinstance(token, dict) else token
                if isinstance(text, str) and text.strip():
                    found.add(text)
    return tuple(sorted(found))


def _context_length(config: dict[str, Any]) -> int | None:
    for holder in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            if isinstance(holder.get(key), int):
                return int(holder[key])
    return None
