"""Identities: digests of canonical bytes, made here and nowhere else. Golden tests pin them."""

from collections.abc import Iterable, Mapping
from hashlib import blake2b, sha256
from zlib import crc32

import orjson

DIGEST_BYTES = 16


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no blanks: equal values give equal bytes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)


def digest(value: object) -> str:
    """32 hex digits naming `value` by its canonical JSON."""
    return blake2b(canonical_json(value), digest_size=DIGEST_BYTES).hexdigest()


def request_key(
    prompt: str, model: str, revision: str, sampling: Mapping[str, object], verification: str = "strict"
) -> str:
    """Identity of one LLM call: equal keys share one stored text, so a call is never paid for twice.

    `verification` is `strict` (with or without lossless drafts) or `relaxed(k,p)`. The retrieval pool is recorded
    beside the text, not keyed.
    """
    return digest(
        {
            "prompt": prompt,
            "model": model,
            "revision": revision,
            "sampling": dict(sampling),
            "verification": verification,
        }
    )


def engine_id(model: str, revision: str, sampling: Mapping[str, object], verification: str = "strict") -> str:
    """16 hex digits naming all of a request key but its prompt: equal ids give comparable texts."""
    return digest({"model": model, "revision": revision, "sampling": dict(sampling), "verification": verification})[:16]


def texts_digest(parts: Iterable[str]) -> str:
    """Identity of what was made of several texts together, each named by its request key or by such a digest."""
    return blake2b("/".join(parts).encode(), digest_size=DIGEST_BYTES).hexdigest()


def item_digest(title: str, attributes: Mapping[str, object]) -> str:
    """Identity of one version of an item: its title and attributes, absent and null attributes alike."""
    return digest({"title": title, "attributes": {k: v for k, v in attributes.items() if v is not None}})


def erased_digest(salt: str, side: str, entity_id: str) -> str:
    """64 hex digits naming an erased `user` or `item` to whoever knows its id. SHA-256, which DuckDB computes, too."""
    return sha256(f"{salt}{side}:{entity_id}".encode()).hexdigest()


def bucket_of(user_id: str, buckets: int) -> int:
    """The bucket (0 <= b < buckets) that holds all of a user's rows, the same on every machine and in every run."""
    return crc32(user_id.encode()) % buckets


def sample_entities(ids: Iterable[str], limit: int) -> list[str]:
    """The first `limit` ids in hash order, sorted: a sample that is stable, nested in `limit`, and not by id."""
    return sorted(sorted(ids, key=lambda i: (crc32(i.encode()), i))[:limit])
