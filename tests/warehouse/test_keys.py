"""Golden keys: these digests are stored in warehouses, so they may never change by accident."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warehouse import keys

SAMPLING = {"temperature": 0.0, "max_new_tokens": 64, "chat": True}


def test_request_key_is_golden() -> None:
    # Made by warehouse.keys.request_key on 2026-11-20 (layout: canonical JSON of five fields, blake2b-128).
    assert keys.request_key("Hello", "pocket", "r1", SAMPLING) == "bd5a8cb5af52b7b106a01b51b3d77a31"
    assert keys.engine_id("pocket", "r1", SAMPLING) == "9effdd731d8fba6e"
    assert keys.item_digest("Nine Lamps", {"genres": ["Drama"], "year": 1987}) == "321711aa2c8d836b0fda84762d9d7231"


def test_the_digest_of_several_texts_is_golden() -> None:
    # Made by warehouse.keys.texts_digest on 2026-11-27 (blake2b-128 of the keys joined by slashes).
    assert keys.texts_digest(["k1", "k2"]) == "91ce1b8b9ef5dfe43b415bd5c8a99e91"


@pytest.mark.parametrize(
    "other",
    [
        ("Hello!", "pocket", "r1", SAMPLING, "strict"),
        ("Hello", "pocket2", "r1", SAMPLING, "strict"),
        ("Hello", "pocket", "r2", SAMPLING, "strict"),
        ("Hello", "pocket", "r1", {**SAMPLING, "temperature": 0.5}, "strict"),
        ("Hello", "pocket", "r1", SAMPLING, "relaxed(2,0.1)"),
    ],
)
def test_everything_that_changes_a_text_changes_its_key(other: tuple[str, str, str, dict[str, object], str]) -> None:
    assert keys.request_key(*other) != keys.request_key("Hello", "pocket", "r1", SAMPLING, "strict")


def test_keys_do_not_depend_on_the_order_of_settings() -> None:
    backwards = dict(reversed(SAMPLING.items()))
    assert keys.request_key("Hello", "m", "r", SAMPLING) == keys.request_key("Hello", "m", "r", backwards)
    assert keys.item_digest("t", {"a": 1, "b": None}) == keys.item_digest("t", {"a": 1})


def test_the_digest_of_an_erased_id_is_golden() -> None:
    # printf 'abuser:u1' | sha256sum
    assert keys.erased_digest("ab", "user", "u1") == (
        "fa1a35fdc38bded13ca93f0c57c19d9d1a9d028cda0cd07ce002a72b4f7336df"
    )


@given(st.text(max_size=20), st.integers(1, 128))
def test_buckets_are_in_range(user: str, buckets: int) -> None:
    assert 0 <= keys.bucket_of(user, buckets) < buckets


@given(st.sets(st.text(max_size=5), max_size=30), st.integers(0, 30), st.integers(0, 10))
def test_a_larger_sample_holds_the_smaller_one(ids: set[str], limit: int, more: int) -> None:
    small, large = keys.sample_entities(ids, limit), keys.sample_entities(ids, limit + more)
    assert set(small) <= set(large) <= ids
    assert len(small) == min(limit, len(ids))
