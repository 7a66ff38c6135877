import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.storage_forms import FORMS, Codes, compress, quantise
from warehouse.errors import ConfigError, InputError


def vectors(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


@pytest.mark.parametrize(
    ("form", "bytes_per_row"),
    [("float32", 64), ("float16", 32), ("int8", 16), ("codes2x256", 2), ("codes4x16", 4), ("codes1x300", 2)],
)
def test_a_row_takes_the_bytes_of_its_form(form: str, bytes_per_row: float) -> None:
    given_vectors = vectors(400, 16)
    read, size = compress(given_vectors, form)
    assert size == bytes_per_row
    assert read.shape == given_vectors.shape
    assert read.dtype == np.float32


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 40), dim=st.integers(1, 8), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_round_trips_are_off_by_no_more_than_their_steps(rows: int, dim: int, scale: float, seed: int) -> None:
    original = vectors(rows, dim, seed) * np.float32(scale)
    np.testing.assert_array_equal(compress(original, "float32")[0], original)
    np.testing.assert_allclose(compress(original, "float16")[0], original, rtol=2**-10, atol=1e-6)
    stored, step = quantise(original)
    assert stored.dtype == np.int8
    assert (np.abs(compress(original, "int8")[0] - original) <= step * 0.5001).all()


def test_every_level_of_codes_brings_the_vectors_nearer() -> None:
    original = vectors(500, 8)
    errors = [np.square(compress(original, f"codes{levels}x16")[0] - original).mean() for levels in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < np.square(original).mean()
    assert errors[-1] < 0.1 * errors[0]


def test_codes_stand_for_the_sum_of_their_codebook_rows() -> None:
    codes = Codes.fit(vectors(60, 5), levels=3, size=7)
    for row, read in zip(codes.codes, codes.vectors(), strict=True):
        by_hand = sum(codes.codebooks[level][code] for level, code in enumerate(row))
        np.testing.assert_allclose(read, by_hand, rtol=1e-6)
    assert codes.codes.max() < 7


def test_as_many_values_as_rows_lose_nothing() -> None:
    original = vectors(20, 4)
    np.testing.assert_allclose(compress(original, "codes1x256")[0], original, atol=1e-5)
    equal = np.ones((5, 3), np.float32)
    np.testing.assert_allclose(compress(equal, "codes2x16")[0], equal, atol=1e-6)


def test_equal_seeds_give_equal_codes() -> None:
    original = vectors(300, 6)
    np.testing.assert_array_equal(*(Codes.fit(original, 2, 16, seed=4).codes for _ in range(2)))


def test_what_cannot_be_compressed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no storage form 'int4'; there are float32, .*codes"):
        compress(vectors(3, 2), "int4")
    with pytest.raises(ConfigError, match="levels=0"):
        compress(vectors(3, 2), "codes0x16")
    with pytest.raises(InputError, match=r"shape \(0, 4\)"):
        compress(np.zeros((0, 4), np.float32), FORMS[0])
    with pytest.raises(InputError, match="not finite"):
        compress(np.full((2, 2), np.nan, np.float32), "int8")
