"""Training of the pocket LLM: a small Qwen3, lessons made as they are needed, and folders that vLLM loads."""

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Field
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from demo.catalogue import Movie, make_catalogue
from demo.lessons import Lesson, item_lesson, random_history, summary_lesson
from demo.pocket_batches import Progress, Stage, lesson_batches, movie_writer
from demo.pocket_hints import Hints
from demo.pocket_repertoire import extend_tokenizer, grown_embedding, repertoire_constants
from demo.pocket_tokenizer import (
    END_OF_TEXT,
    TURN_END,
    chat,
    constant_parts,
    save_tokenizer,
    train_tokenizer,
)
from prompts.render import PromptWriter

MAX_POSITIONS = 2048
IGNORED = -100
# Lengths are rounded up to these: a matrix product of a new shape costs the CPU library a compilation.
LENGTH_STEP = 16
TARGET_STEP = 256


class TrainingConfig(BaseModel, frozen=True, extra="forbid"):
    """How the pocket LLM is trained. The defaults made the committed weights."""

    seed: int = 7
    # Counting first, which takes longest; then the facts that no list teaches, while lists keep what is learned.
    stages: tuple[Stage, ...] = (
        Stage(steps=2800, facts_share=0.25, hints=True, growth_until=0.3),
        Stage(steps=900, facts_share=0.65, rate=0.4),
        Stage(steps=600, facts_share=0.4, rate=0.4, brief=True),
        # The kinds of prompt that came later, and the old ones so that they are not forgotten.
        Stage(
            steps=1700,
            facts_share=0.1,
            groups_share=0.22,
            shifts_share=0.46,
            repertoire=True,
            brief=True,
            hints=True,
            rate=0.6,
        ),
    )
    batch: int = Field(default=16, ge=1)
    # Peak rates: orthogonalised momentum (Muon) for the matrices inside the layers, AdamW for the rest.
    matrix_rate: float = Field(default=0.015, gt=0)
    other_rate: float = Field(default=5e-3, gt=0)
    # Stages end early when their part of this is used up; their learning rate follows the nearer end.
    max_minutes: float = Field(default=600.0, gt=0)
    checkpoint_minutes: float = Field(default=3.0, gt=0)
    threads: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class StageReport:
    """What one stage was; losses are running means in nats per answer token."""

    steps: int
    minutes: float
    tokens: int
    # Keys are those of the batches: items, lists, groups, shifts; NaN for what the stage did not show.
    losses: dict[str, float]


@dataclass(frozen=True)
class TrainingReport:
    """What a training run was: for the model card."""

    stages: tuple[StageReport, ...]
    parameters: int
    vocabulary: int


def make_tokenizer(writer: PromptWriter, movies: Sequence[Movie], seed: int, repertoire: bool = False) -> Tokenizer:
    """The tokenizer of all items' lessons and of sample lists; with `repertoire` also of the later kinds of prompt."""
    rng = np.random.default_rng([seed, 1])
    items = [item_lesson(writer, movie) for movie in movies]
    lists = [summary_lesson(writer, random_history(movies, int(rng.integers(1, 40)), rng)) for _ in range(1500)]
    constants = constant_parts([x.prompt for x in items]) + constant_parts([x.prompt for x in lists])
    tokenizer = train_tokenizer(items + lists, constants)
    if repertoire:
        extend_tokenizer(tokenizer, repertoire_constants(writer, movies, tokenizer))
    return tokenizer


def make_model(tokenizer: Tokenizer, seed: int) -> Qwen3ForCausalLM:
    """An untrained model of about three million weights that ends its answers with the end of the turn."""
    torch.manual_seed(seed)
    end = tokenizer.token_to_id(TURN_END)
    pad = tokenizer.token_to_id(END_OF_TEXT)
    config = Qwen3Config(
        vocab_size=math.ceil(tokenizer.get_vocab_size() / 64) * 64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, do_sample=False)
    return model


def save_model(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model's folder in bfloat16, each file whole: a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pocket-") as name:
        half = Qwen3ForCausalLM(model.config).to(torch.bfloat16)
        half.load_state_dict(model.state_dict())
        half.config.dtype = torch.bfloat16
        half.generation_config = model.generation_config
        half.save_pretrained(name)
        model.config.dtype = torch.float32
        save_tokenizer(tokenizer, Path(name))
        for path in Path(name).iterdir():
            path.chmod(0o644)
            os.replace(path, folder / path.name)


def encode_batch(tokenizer: Tokenizer, lessons: Sequence[Lesson], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids [b, t], padded on the right, and labels [b, t] that are IGNORED outside the answers."""
    given, said = zip(*(chat(lesson) for lesson in lessons), strict=True)
    questions = [e.ids for e in tokenizer.encode_batch(list(given))]
    answers = [e.ids for e in tokenizer.encode_batch(list(said))]
    longest = _round_up(max(len(q) + len(a) for q, a in zip(questions, answers, strict=True)), LENGTH_STEP)
    ids = torch.full((len(lessons), longest), pad)
    labels = torch.full((len(lessons), longest), IGNORED)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        ids[row, : len(question) + len(answer)] = torch.tensor(question + answer)
        labels[row, len(question) : len(question) + len(answer)] = torch.tensor(answer)
    return ids, labels


def answer_loss(model: Qwen3ForCausalLM, hidden: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the answers' tokens, from the last layer's output; logits are made for no other."""
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    # Answer positions first, then as many others (ignored) as fill the last step.
    order = torch.argsort((targets == IGNORED).to(torch.int8), stable=True)
    order = order[: _round_up(int((targets != IGNORED).sum()), TARGET_STEP)]
    logits = model.lm_head(hidden.flatten(0, 1)[order]).float()
    return torch.nn.functional.cross_entropy(logits, targets[order], ignore_index=IGNORED)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def train(config: TrainingConfig, out: Path) -> TrainingReport:
    """Train on the catalogue and write the folder `out`, every few minutes and after each stage.

    A stage after the first begins with the weights as written, in bfloat16, so it can also be run alone.
    """
    movies = make_catalogue()
    flags = {stage.repertoire for stage in config.stages}
    tokenizers = {flag: make_tokenizer(movie_writer(), movies, config.seed, flag) for flag in flags}
    reports = [
        run_stage(config, number, movies, tokenizers[stage.repertoire], out)
        for number, stage in enumerate(config.stages)
    ]
    tokenizer = tokenizers[config.stages[-1].repertoire]
    return TrainingReport(
        stages=tuple(reports),
        parameters=sum(p.numel() for p in make_model(tokenizer, config.seed).parameters()),
        vocabulary=tokenizer.get_vocab_size(),
    )


def run_stage(
    config: TrainingConfig, number: int, movies: Sequence[Movie], tokenizer: Tokenizer, out: Path
) -> StageReport:
    """Run one stage: the first on fresh weights, a later one on those in `out`."""
    torch.set_num_threads(config.threads)
    stage = config.stages[number]
    model = make_model(tokenizer, config.seed)
    if number > 0:
        load_weights(model, tokenizer, out)
    hints = Hints(tokenizer, movies, model.config.hidden_size, model.config.vocab_size) if stage.hints else None
    optimizers = make_optimizers(config, model, hints)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    progress = Progress(stage, config.max_minutes * stage.steps / sum(s.steps for s in config.stages))
    losses = dict.fromkeys(("items", "lists", "groups", "shifts", "hints"), math.nan)
    tokens, next_checkpoint = 0, config.checkpoint_minutes
    rng = np.random.default_rng([config.seed, 2 + number])
    for kind, lessons in lesson_batches(stage, config.batch, movies, progress, rng):
        if progress.share >= 1.0:
            break
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * progress.rate
        ids, labels = encode_batch(tokenizer, lessons, model.config.pad_token_id)
        found = backward(model, hints, ids, labels, lessons)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        progress.step += 1
        losses[kind] = _smooth(losses[kind], found[0])
        losses["hints"] = _smooth(losses["hints"], found[1])
        if progress.step % 50 == 0:
            print(
                f"stage {number + 1}, step {progress.step} ({progress.share:.0%}, {progress.minutes:.1f} min): loss "
                + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items() if not math.isnan(loss))
                + f"; {tokens / (60 * progress.minutes):.0f} tokens/s",
                flush=True,
            )
        if progress.minutes > next_checkpoint:
            next_checkpoint = progress.minutes + config.checkpoint_minutes
            save_model(model, tokenizer, out)
    save_model(model, tokenizer, out)
    del losses["hints"]
    return StageReport(progress.step, progress.minutes, tokens, losses)


def load_weights(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Put the weights of a folder into the model; where its tokenizer had fewer tokens, the others get a beginning."""
    state = load_file(folder / "model.safetensors")
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    embedding = "model.embed_tokens.weight"
    if stored.get_vocab_size() < tokenizer.get_vocab_size():
        state[embedding] = grown_embedding(state[embedding], model.config.vocab_size, stored, tokenizer)
    model.load_state_dict(state, strict=False)
    model.tie_weights()


def make_optimizers(
    config: TrainingConfig, model: Qwen3ForCausalLM, hints: Hints | None
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and the hints' heads."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    other = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    if hints is not None:
        other += list(hints.parameters())
    return [
        torch.optim.Muon(inner, lr=config.matrix_rate, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(other, lr=config.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def backward(
    model: Qwen3ForCausalLM, hints: Hints | None, ids: Tensor, labels: Tensor, lessons: Sequence[Lesson]
) -> tuple[float, float]:
    """Losses of the answers and of the hints (NaN without), after adding their gradients."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Padding stands on the right, where a causal model cannot see it, so no mask is needed.
        states = model.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        loss = answer_loss(model, states[-1], labels)
        hint = hints.loss(ids, hints.targets(ids, lessons), states) if hints is not None else None
    (loss if hint is None else loss + hint).backward()  # type: ignore[no-untyped-call]
    return loss.item(), math.nan if hint is None else hint.item()


def _smooth(mean: float, value: float) -> float:
    """A running mean that forgets with 0.95 and starts at the first number it sees."""
    return mean if math.isnan(value) else value if math.isnan(mean) else 0.95 * mean + 0.05 * value
