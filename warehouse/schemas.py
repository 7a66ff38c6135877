"""Arrow schemas of every table: the one place where columns, types and time units are written down.

All ids are strings, all times microseconds in UTC, all intervals half-open.
"""

from datetime import UTC, datetime
from enum import StrEnum

import pyarrow as pa

# Tables of texts and vectors, whose files count before the ledger names them: see `warehouse.segments`.
SEGMENTED = ("knowledge", "embeddings")

TIMESTAMP = pa.timestamp("us", tz="UTC")

# "Always valid". Not datetime.min: pandas' nanosecond clock starts in 1677, and a cast must not overflow downstream.
ALWAYS = datetime(1700, 1, 1, tzinfo=UTC)

DEFAULT_ACTION = "interact"

BEHAVIOURS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("ts", TIMESTAMP, nullable=False),
        pa.field("value", pa.float32(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
    ]
)

# As delivered. Attribute columns of any name follow; `available_at` (timestamp) is optional.
ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
    ]
)

# As delivered. Attribute columns of any name follow.
USERS = pa.schema([pa.field("user_id", pa.string(), nullable=False)])

# As stored: one row per version of an item. `attributes` is canonical JSON of all other columns but `available_at`.
# `valid_from` of a first version is `available_at` or ALWAYS, of a later one max(`available_at`, `created_at`).
ITEM_VERSIONS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("attributes", pa.string(), nullable=False),
        pa.field("available_at", TIMESTAMP),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("valid_from", TIMESTAMP, nullable=False),
        pa.field("created_at", TIMESTAMP, nullable=False),
    ]
)

USER_VERSIONS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("attributes", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("created_at", TIMESTAMP, nullable=False),
    ]
)

# One row per sealed partition. `items` and `values` are in order of (ts, item_id, arrival); never empty.
PARTITIONS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("partition_no", pa.int32(), nullable=False),
        pa.field("opened_at", TIMESTAMP, nullable=False),
        pa.field("sealed_at", TIMESTAMP, nullable=False),
        pa.field("items", pa.list_(pa.string()), nullable=False),
        pa.field("values", pa.list_(pa.float32()), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
    ]
)

# One row per user: the open partition's events in order, what numbers the next seal, and the running maximum of
# `sealed_at` (null before the first seal). Not a public table; the next run reads it instead of the user's history.
OPEN_PARTITIONS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("partition_no", pa.int32(), nullable=False),
        pa.field("sealed_floor", TIMESTAMP),
        pa.field("items", pa.list_(pa.string()), nullable=False),
        pa.field("ts", pa.list_(TIMESTAMP), nullable=False),
        pa.field("values", pa.list_(pa.float32()), nullable=False),
    ]
)

# `engine_id` names model, revision, sampling, verification; `source_digest` the partition or item version in question.
REQUESTS = pa.schema(
    [
        pa.field("request_key", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("entity_id", pa.string(), nullable=False),
        pa.field("partition_no", pa.int32()),
        pa.field("as_of", TIMESTAMP, nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("prompt_version", pa.string(), nullable=False),
        pa.field("engine_id", pa.string(), nullable=False),
        pa.field("source_digest", pa.string(), nullable=False),
        pa.field("created_at", TIMESTAMP, nullable=False),
    ]
)

# A call has a row per attempt (null: the only one). `reason` says in words why `status` is not ok.
KNOWLEDGE = pa.schema(
    [
        pa.field("request_key", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("tokens_in", pa.int32(), nullable=False),
        pa.field("tokens_out", pa.int32(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("sampling", pa.string(), nullable=False),
        pa.field("verification", pa.string(), nullable=False),
        pa.field("pool_id", pa.string()),
        pa.field("prompt_version", pa.string(), nullable=False),
        pa.field("drafted", pa.int32()),
        pa.field("accepted", pa.int32()),
        pa.field("relaxed", pa.int32()),
        pa.field("steps", pa.int32()),
        pa.field("attempt", pa.int32()),
        pa.field("reason", pa.string()),
        pa.field("created_at", TIMESTAMP, nullable=False),
    ]
)


# REKI's clusterings. A group of `kind` (group_likes, group_dislikes, group_items) in a `generation`; only those without
# a child are asked about, the others are what a group falls back to. `centroid` is the mean of the members' features,
# `named` the items that stand for the group in its prompt. What is known of a group holds from `as_of`, the end of the
# events that the clustering saw.
GROUPS = pa.schema(
    [
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("parent_id", pa.string()),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("named", pa.list_(pa.string()), nullable=False),
        pa.field("centroid", pa.list_(pa.float32()), nullable=False),
        pa.field("as_of", TIMESTAMP, nullable=False),
        pa.field("created_at", TIMESTAMP, nullable=False),
    ]
)

# Which leaf an entity is in. `joined_at` is the groups' `as_of`, or the time of the last event that a later assignment
# to the frozen groups went by.
GROUP_MEMBERS = pa.schema(
    [
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("entity_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("joined_at", TIMESTAMP, nullable=False),
        pa.field("created_at", TIMESTAMP, nullable=False),
    ]
)

# What users and later items are assigned by: the features of the items that a clustering saw.
ITEM_FACTORS = pa.schema(
    [
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32()), nullable=False),
    ]
)


def embeddings_schema(dim: int) -> pa.Schema:
    """Schema of `embeddings` for vectors of `dim` float32 numbers; rows hold the mean of `tokens_cut`-free windows."""
    return pa.schema(
        [
            pa.field("request_key", pa.string(), nullable=False),
            pa.field("encoder_id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
            pa.field("tokens_cut", pa.int32(), nullable=False),
        ]
    )


class Rung(StrEnum):
    """Whose knowledge stands in a feature row (the cold-start ladder)."""

    OWN = "own"
    GROUP = "group"
    GLOBAL = "global"
    NONE = "none"


def _features(entity: str, extra: list[pa.Field]) -> pa.Schema:
    return pa.schema(
        [
            pa.field(entity, pa.string(), nullable=False),
            *extra,
            pa.field("valid_from", TIMESTAMP, nullable=False),
            pa.field("created_at", TIMESTAMP, nullable=False),
            pa.field("augment", pa.list_(pa.float32())),
            pa.field("augment_dim", pa.int32(), nullable=False),
            pa.field("rung", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("request_key", pa.string()),
            pa.field("source_digest", pa.string(), nullable=False),
            pa.field("model", pa.string()),
            pa.field("prompt_version", pa.string()),
            pa.field("encoder_id", pa.string()),
            pa.field("adapter_version", pa.string(), nullable=False),
            pa.field("texts_digest", pa.string()),
            pa.field("snapshot_id", pa.string(), nullable=False),
        ]
    )


# `augment` is null exactly where rung is `none`. `valid_from` is exclusive in the join: it must be < the event's ts.
# `source_digest` is the partition's digest for users and the item version's digest for items; `texts_digest` names all
# texts that the vector was made of.
USER_FEATURES = _features("user_id", [pa.field("partition_no", pa.int32(), nullable=False)])
ITEM_FEATURES = _features("item_id", [])

# Version of these columns. 1 had no `texts_digest`; what is added is nullable, so that older files read on.
FEATURES_CONTRACT = 2

FEATURES = {"user_features": USER_FEATURES, "item_features": ITEM_FEATURES}
