"""Pool files: what was saved comes back, and nothing else is accepted."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from augment.speculation.pool import CorruptPool, PoolIdentity, PoolMismatch, RetrievalPool

IDENTITY = PoolIdentity(model="standin@1", tokenizer="abc", prompt_version="p1")


def sentences(count: int, seed: int = 0) -> list[list[int]]:
    """Texts that share phrases, as knowledge texts do."""
    rng = np.random.default_rng(seed)
    phrases = [rng.integers(0, 500, rng.integers(3, 12)).tolist() for _ in range(40)]
    return [[token for p in rng.integers(0, 40, 12) for token in phrases[p]] for _ in range(count)]


@pytest.fixture(scope="module")
def pool() -> RetrievalPool:
    groups = [f"genre {n % 3}" for n in range(120)]
    return RetrievalPool.build(sentences(120), groups, identity=IDENTITY)


def test_a_loaded_pool_is_the_saved_one(pool: RetrievalPool, tmp_path: Path) -> None:
    pool.save(tmp_path / "a.pool")
    loaded = RetrievalPool.load(tmp_path / "a.pool", IDENTITY)
    assert (loaded.digest, loaded.identity, loaded.stats()) == (pool.digest, pool.identity, pool.stats())
    for ours, theirs in zip((*pool.index, *pool.mixer), (*loaded.index, *loaded.mixer), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pool"]


def test_the_digest_follows_content_groups_and_identity(pool: RetrievalPool) -> None:
    texts, groups = sentences(120), [f"genre {n % 3}" for n in range(120)]
    assert RetrievalPool.build(texts, groups, identity=IDENTITY).digest == pool.digest
    texts[5] = texts[5][:-1]
    assert RetrievalPool.build(texts, groups, identity=IDENTITY).digest != pool.digest
    few = sentences(4)
    made = {
        RetrievalPool.build(few, identity=IDENTITY).digest,
        RetrievalPool.build(few, ["a"] * 4, identity=IDENTITY).digest,
        RetrievalPool.build(few, identity=PoolIdentity(model="other")).digest,
    }
    assert len(made) == 3


@pytest.mark.parametrize("field", ["model", "tokenizer", "prompt_version"])
def test_a_pool_of_another_identity_is_refused(pool: RetrievalPool, tmp_path: Path, field: str) -> None:
    pool.save(tmp_path / "a.pool")
    with pytest.raises(PoolMismatch) as raised:
        RetrievalPool.load(tmp_path / "a.pool", IDENTITY.model_copy(update={field: "wanted"}))
    message = str(raised.value)
    assert "expected 'wanted'" in message
    assert repr(getattr(IDENTITY, field)) in message
    assert "lorestream pool build" in message
    assert raised.value.exit_code == 2
    assert str(pickle.loads(pickle.dumps(raised.value))) == message


@pytest.mark.parametrize("place", [0, 10, 40, 200, 0.2, 0.5, 0.9, -70])
def test_a_changed_byte_is_noticed(pool: RetrievalPool, tmp_path: Path, place: float) -> None:
    path = tmp_path / "a.pool"
    pool.save(path)
    content = bytearray(path.read_bytes())
    at = int(place * len(content)) if isinstance(place, float) else place
    content[at] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CorruptPool, match="build it again"):
        RetrievalPool.load(path)


@pytest.mark.parametrize("kept", [0, 4, 12, 100, 0.5, 0.999])
def test_a_truncated_file_is_noticed(pool: RetrievalPool, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.pool"
    pool.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(CorruptPool):
        RetrievalPool.load(path)


def test_a_pool_takes_at_most_ten_bytes_a_token(tmp_path: Path) -> None:
    texts = sentences(400)
    pool = RetrievalPool.build(texts)
    pool.save(tmp_path / "a.pool")
    tokens = sum(map(len, texts))
    assert pool.tokens == tokens
    assert (tmp_path / "a.pool").stat().st_size <= 10 * tokens


def test_an_empty_pool_can_be_built_and_loaded(tmp_path: Path) -> None:
    RetrievalPool.build([]).save(tmp_path / "a.pool")
    pool = RetrievalPool.load(tmp_path / "a.pool")
    assert pool.stats()["tokens"] == 0
    assert pool.session([1, 2, 3]).propose(4) == []


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 sequences, but 1 groups"):
        RetrievalPool.build([[1], [2]], ["a"])
    with pytest.raises(ValueError, match="2 sequences, but 3 prompts"):
        RetrievalPool.build([[1], [2]], prompts=[[1], [2], [3]])
