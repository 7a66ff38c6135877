"""The real MiniLM against a slow oracle: pooling, windows, batches, and errors that name the remedy."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from augment import encode as module
from augment.encode import EncoderConfig, EncoderStats, TextEncoder, Window, length_batches, split_windows
from warehouse.errors import ConfigError, InputError

SHORT = ["A quiet film about a lighthouse.", "Hello", "Rivers, bridges and 3 old friends: a comedy!"]
LONG = " ".join(
    f"In chapter {i} the captain finds clue {i * 7} under a {'red' if i % 2 else 'blue'} boat." for i in range(60)
)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder()


def token_ids(encoder: TextEncoder, text: str) -> list[int]:
    encoder.load()
    ids: list[int] = encoder._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return ids


def states(encoder: TextEncoder, content: list[int]) -> NDArray[np.float32]:
    """Token states of one sequence, alone and unpadded, with [CLS] and [SEP] around it."""
    import torch

    encoder.load()
    with torch.inference_mode():
        out = encoder._model(input_ids=torch.tensor([[101, *content, 102]])).last_hidden_state
    array: NDArray[np.float32] = out[0].numpy()
    return array


def test_the_default_is_minilm_from_its_package(encoder: TextEncoder) -> None:
    assert encoder.dim == 384
    assert encoder.window_tokens == 256
    assert encoder.encoder_id.startswith("all-MiniLM-L6-v2@")
    assert str(encoder.info.path) not in encoder.encoder_id


def test_a_short_text_gets_the_mean_of_its_token_states(encoder: TextEncoder) -> None:
    expected = np.stack([states(encoder, token_ids(encoder, text)).mean(axis=0) for text in SHORT])
    np.testing.assert_allclose(encoder.encode(SHORT), expected, atol=1e-5)


def test_short_texts_agree_with_sentence_transformers(encoder: TextEncoder) -> None:
    transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    reference = transformers.SentenceTransformer(str(encoder.info.path), device="cpu").encode(SHORT)
    unit = TextEncoder(EncoderConfig(normalize=True)).encode(SHORT)
    np.testing.assert_allclose(unit, reference, atol=1e-5)
    vectors = encoder.encode(SHORT)
    np.testing.assert_allclose(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), reference, atol=1e-5)


def test_cls_pooling_takes_the_first_state(encoder: TextEncoder) -> None:
    first = states(encoder, token_ids(encoder, SHORT[0]))[0]
    np.testing.assert_allclose(TextEncoder(EncoderConfig(pooling="cls")).encode(SHORT[:1])[0], first, atol=1e-5)


def test_a_long_text_is_the_mean_of_its_windows_weighted_by_new_tokens(encoder: TextEncoder) -> None:
    ids = token_ids(encoder, LONG)
    room, overlap = 254, 32
    assert len(ids) > 3 * room
    # Oracle: walk over the text, each window starting `overlap` before the end of what was read; the last one is
    # moved back so that it is full.
    total, read = np.zeros(384), 0
    while read < len(ids):
        end = min(read + room - (overlap if read else 0), len(ids))
        total += (end - read) * states(encoder, ids[end - room : end]).mean(axis=0)
        read = end
    np.testing.assert_allclose(encoder.encode([LONG])[0], total / len(ids), atol=1e-5)


def test_the_tail_of_a_long_text_reaches_its_vector(encoder: TextEncoder) -> None:
    """Under truncation at the window both texts would have one vector."""
    other = LONG.rsplit(" ", 12)[0] + " At last everybody goes home and the sea is calm again."
    same_head, changed = encoder.encode([LONG, other])
    assert token_ids(encoder, LONG)[:254] == token_ids(encoder, other)[:254]
    assert np.abs(same_head - changed).max() > 1e-3


def test_order_and_company_do_not_matter(encoder: TextEncoder) -> None:
    texts = [LONG, *SHORT, LONG[:900], "x"]
    small_batches = TextEncoder(EncoderConfig(batch_tokens=300))
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts[::-1]), alone[::-1], atol=1e-5)
    np.testing.assert_allclose(small_batches.encode(texts), alone, atol=1e-5)


def test_progress_counts_texts_that_are_finished(encoder: TextEncoder) -> None:
    seen: list[EncoderStats] = []
    reporting = TextEncoder(EncoderConfig(batch_tokens=300), on_progress=seen.append)
    reporting.encode([LONG, *SHORT])
    assert [s.texts for s in seen] == sorted(s.texts for s in seen)
    assert seen[-1].texts == seen[-1].texts_total == 4
    assert seen[0].texts < 4
    assert seen[-1].tokens == sum(len(token_ids(encoder, t)) for t in [LONG, *SHORT])
    assert seen[-1].texts_per_s > 0


def test_no_texts_give_no_vectors_and_load_nothing() -> None:
    encoder = TextEncoder()
    assert encoder.encode([]).shape == (0, 384)
    assert encoder._model is None


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_an_empty_text_is_an_error(encoder: TextEncoder, empty: str) -> None:
    with pytest.raises(InputError, match="Text 1 of 2 is empty"):
        encoder.encode(["fine", empty])


@given(tokens=st.integers(0, 2000), room=st.integers(9, 300), overlap=st.integers(0, 100))
def test_windows_cover_every_token_and_count_it_once(tokens: int, room: int, overlap: int) -> None:
    overlap = min(overlap, (room - 1) // 2)
    windows = split_windows(3, tokens, room, overlap)
    covered: set[int] = set()
    for window in windows:
        reached = set(range(window.start, window.end))
        assert window.text == 3
        assert len(reached) <= room
        assert window.new == len(reached - covered)
        assert not covered or len(reached & covered) >= overlap
        covered |= reached
    assert covered == set(range(tokens))
    assert len(windows) == 1 or all(w.end - w.start == room for w in windows)


@given(
    lengths=st.lists(st.integers(0, 254), max_size=60),
    batch_tokens=st.integers(8, 2000),
)
def test_batches_hold_every_window_once_within_the_token_budget(lengths: list[int], batch_tokens: int) -> None:
    windows = [Window(i, 0, n, n) for i, n in enumerate(lengths)]
    batches = list(length_batches(windows, 2, batch_tokens))
    assert sorted(w.text for b in batches for w in b) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(w.end - w.start + 2 for w in batch)
        assert padded <= batch_tokens or len(batch) == 1


def test_the_id_follows_everything_that_changes_a_vector() -> None:
    options: list[dict[str, object]] = [
        {},
        {"pooling": "cls"},
        {"window_tokens": 128},
        {"window_overlap_tokens": 16},
        {"normalize": True},
        {"dtype": "bfloat16"},
    ]
    ids = [TextEncoder(EncoderConfig.model_validate(o)).encoder_id for o in options]
    assert len(set(ids)) == len(options)
    assert TextEncoder(EncoderConfig(batch_tokens=512)).encoder_id == ids[0]
    assert TextEncoder(EncoderConfig(window_tokens=256)).encoder_id == ids[0]


def test_a_missing_model_or_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="/no/such/encoder") as caught:
        TextEncoder(EncoderConfig(model="/no/such/encoder"))
    assert caught.value.exit_code == 2
    monkeypatch.setattr(module, "_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="pip install no-such-package"):
        TextEncoder()


def test_windows_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"window_tokens = 1024.*reads at most 512"):
        TextEncoder(EncoderConfig(window_tokens=1024))
    with pytest.raises(ValidationError, match="window_overlap_tokens = 64"):
        EncoderConfig(window_tokens=128, window_overlap_tokens=64)
    with pytest.raises(ConfigError, match="Take a smaller overlap"):
        TextEncoder(EncoderConfig(window_overlap_tokens=127)).load()


def test_without_a_sentence_transformers_file_the_window_is_the_models_length(tmp_path: Path) -> None:
    folder = tmp_path / "plain-bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64, "hidden_size": 12}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1e30}))
    (folder / "tokenizer.json").write_text('{"model": {}, "added_tokens": []}')
    (folder / "model.safetensors").write_bytes(b"x")
    encoder = TextEncoder(EncoderConfig(model=str(folder), window_overlap_tokens=8))
    assert (encoder.window_tokens, encoder.dim) == (64, 12)
    assert encoder.encoder_id.startswith("plain-bert@")
