"""Where users and items stand in the tables: what an erasure has to drop or change, as conditions and edits of rows.

A user is its own rows, and nothing else: no prompt of another user shows it, and a text that two users share was asked
for with one prompt, which says as much of the one as of the other. An item stands in other entities' rows too:

- a sealed partition loses its events with the item, keeps its number and its bounds, and is named by a new digest; an
  emptied one goes. How the user's history was cut into partitions stays.
- groups no longer name it.
- a prompt that showed its title goes with the text that was made of it, and so does every later text whose prompt
  quotes such a text (a cascade). The next run asks anew, without the title. Published vectors of users stay until that
  run replaces them: they are numbers, and the title cannot be read from them.
"""

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import duckdb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from warehouse.answers import IMPORTED, answers_view
from warehouse.erased import pieces
from warehouse.keys import digest
from warehouse.ledger import Ledger
from warehouse.rewrite import Edit, Rows
from warehouse.schemas import GROUP_MEMBERS, GROUPS, ITEM_VERSIONS, PARTITIONS, REQUESTS
from warehouse.sql import parquet_view, quote, reading_stored

# Quoting is told by runs of so many letters: a prompt shows an earlier text from its first one on, at least a hundred
# characters of it, without what cleaning takes for a token.
_RUN_LETTERS = 24
_RUNS = 3


@dataclass(frozen=True)
class Subjects:
    """Whom to erase: ids of users and of items."""

    users: frozenset[str] = frozenset()
    items: frozenset[str] = frozenset()


_USER, _ITEM = "IN (SELECT id FROM erased_users)", "IN (SELECT id FROM erased_items)"
_NAMES_ITEM = "list_has_any({}, (SELECT coalesce(list(id), []) FROM erased_items))"

# Of every table of the ledger whose rows are told by their columns alone, which rows are concerned.
CONDITIONS: Mapping[str, str] = {
    "behaviours": f"user_id {_USER} OR item_id {_ITEM}",
    "items": f"item_id {_ITEM}",
    "users": f"user_id {_USER}",
    "partitions": f"user_id {_USER} OR {_NAMES_ITEM.format('items')}",
    "open": f"user_id {_USER} OR {_NAMES_ITEM.format('items')}",
    "requests": "(request_key, kind, entity_id) IN (SELECT (request_key, kind, entity_id) FROM doomed)",
    "groups": _NAMES_ITEM.format("named"),
    "group_members": f"CASE WHEN kind = 'group_items' THEN entity_id {_ITEM} ELSE entity_id {_USER} END",
    "item_factors": f"item_id {_ITEM}",
}


def feature_conditions(subjects: Subjects) -> dict[str, str]:
    """The same of the public tables. A user's row whose partition went with the items in it goes, too."""
    conditions = {"user_features": f"user_id {_USER}", "item_features": f"item_id {_ITEM}"}
    if subjects.items:
        conditions["user_features"] += (
            " OR (user_id, partition_no) NOT IN (SELECT (user_id, partition_no) FROM partitions "
            "WHERE NOT list_has_all((SELECT list(id) FROM erased_items), items))"
        )
    return conditions


def edits(subjects: Subjects) -> dict[str, Edit]:
    """What becomes of concerned rows that are not simply dropped, by table."""
    items = pa.array(sorted(subjects.items), pa.string())
    users = pa.array(sorted(subjects.users), pa.string())

    def partitions(rows: pa.Table) -> tuple[pa.Table, NDArray[np.bool_]]:
        cut = _without_items(rows, "items", ("values",), items)
        renamed = [
            digest({"was": was, "items": left, "values": values})
            for was, left, values in zip(
                rows["digest"].to_pylist(), cut["items"].to_pylist(), cut["values"].to_pylist(), strict=True
            )
        ]
        cut = cut.set_column(cut.schema.get_field_index("digest"), rows.schema.field("digest"), pa.array(renamed))
        stays = pc.and_(_is_other(rows["user_id"], users), pc.greater(pc.list_value_length(cut["items"]), 0))
        return cut, stays.to_numpy()

    def open_partitions(rows: pa.Table) -> tuple[pa.Table, NDArray[np.bool_]]:
        cut = _without_items(rows, "items", ("ts", "values"), items)
        return cut, _is_other(rows["user_id"], users).to_numpy()

    def groups(rows: pa.Table) -> tuple[pa.Table, NDArray[np.bool_]]:
        return _without_items(rows, "named", (), items), np.ones(len(rows), bool)

    return {"partitions": partitions, "open": open_partitions, "groups": groups}


def open_traces(con: duckdb.DuckDBPyConnection, ledger: Ledger, knowledge: Sequence[Path], subjects: Subjects) -> None:
    """Make what the conditions read: `erased_users`, `erased_items`, `doomed` (requests that go), `partitions`; and
    `live_keys`, the keys of the requests that stay."""
    for name, ids in (("erased_users", subjects.users), ("erased_items", subjects.items)):
        con.register(f"{name}_given", pa.table({"id": pa.array(sorted(ids), pa.string())}))
        con.execute(f"CREATE TEMP TABLE {name} AS FROM {name}_given")
    for table, schema in (
        ("partitions", PARTITIONS),
        ("requests", REQUESTS),
        ("items", ITEM_VERSIONS),
        ("groups", GROUPS),
        ("group_members", GROUP_MEMBERS),
    ):
        parquet_view(con, table, ledger.files(table), schema)
    answers_view(con, knowledge)
    con.execute(_DOOMED)
    if subjects.items:
        _doom_what_showed_items(con)
    con.execute(
        f"CREATE TEMP TABLE live_keys AS SELECT DISTINCT request_key FROM requests WHERE NOT ({CONDITIONS['requests']})"
    )


def concerned_groups(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Groups that an erased entity is in or stands for: their centroids, sizes and texts had a part of it."""
    found = con.execute(
        f"SELECT group_id FROM group_members WHERE {CONDITIONS['group_members']} "
        f"UNION SELECT group_id FROM groups WHERE {CONDITIONS['groups']} ORDER BY group_id"
    ).fetchall()
    return [group for (group,) in found]


def rejected_rows(
    files: Sequence[Path], subjects: Subjects, user_columns: Collection[str], item_columns: Collection[str]
) -> dict[Path, Rows]:
    """Places of the rejected rows that name an erased entity, by file.

    A row with columns of the inputs (`user_columns` and `item_columns` are what ids are called there) is told by these;
    of one that is free text (a line that does not parse, a message of an import) any piece that equals an id counts.
    """
    found: dict[Path, Rows] = {}
    sides = ((frozenset(user_columns), subjects.users), (frozenset(item_columns), subjects.items))
    for path in files:
        places: list[int] = []
        with reading_stored([path]), pq.ParquetFile(path) as file:
            start = 0
            for batch in file.iter_batches(columns=["row"]):
                texts = batch.column("row").to_pylist()
                places += [start + place for place, text in enumerate(texts) if _names(text, sides)]
                start += len(texts)
        if places:
            found[path] = np.array(places, np.int64)
    return found


_DOOMED = f"""
    CREATE TEMP TABLE doomed AS
    SELECT request_key, kind, entity_id, partition_no FROM requests
    WHERE CASE WHEN starts_with(kind, 'user_') THEN entity_id {_USER}
               WHEN starts_with(kind, 'group_') THEN entity_id IN (
                   SELECT group_id FROM groups WHERE {_NAMES_ITEM.format("named")})
               ELSE entity_id {_ITEM} END
"""

# Requests and their texts of users who met an erased item, from the first partition with it on. Of texts made elsewhere
# nobody knows the prompt: they go where they name the title.
_AFTER_ITEMS = f"""
    WITH touched AS (SELECT user_id, partition_no FROM partitions WHERE {_NAMES_ITEM.format("items")}),
    first AS (SELECT user_id, min(partition_no) AS partition_no FROM touched GROUP BY user_id),
    titles AS (SELECT DISTINCT title FROM items WHERE item_id {_ITEM})
    SELECT r.entity_id, r.partition_no, r.kind, r.request_key, r.prompt,
           CASE WHEN starts_with(r.engine_id, {quote(IMPORTED)})
                THEN EXISTS (FROM titles t WHERE contains(r.prompt, t.title)
                             OR EXISTS (FROM stored_knowledge k
                                        WHERE k.request_key = r.request_key AND contains(k.text, t.title)))
                ELSE (r.entity_id, r.partition_no) IN (SELECT (user_id, partition_no) FROM touched) END AS showed,
           (SELECT list(text) FROM stored_knowledge k WHERE k.request_key = r.request_key) AS texts
    FROM requests r JOIN first f ON r.entity_id = f.user_id AND r.partition_no >= f.partition_no
    WHERE starts_with(r.kind, 'user_') AND r.entity_id NOT {_USER}
    ORDER BY r.entity_id, r.partition_no, r.kind = 'user_shift', r.created_at, r.request_key
"""


def _doom_what_showed_items(con: duckdb.DuckDBPyConnection) -> None:
    """Add to `doomed` what was asked of other users with an erased item's title in the prompt, or with such a text."""
    doomed: list[dict[str, object]] = []
    user, spoilt = None, list[str]()
    for row in _rows(con, _AFTER_ITEMS):
        if row["entity_id"] != user:
            user, spoilt = row["entity_id"], []
        if row["showed"] or (spoilt and _quotes(row["prompt"], spoilt)):
            doomed.append({name: row[name] for name in ("request_key", "kind", "entity_id", "partition_no")})
            spoilt += [run for text in cast("list[str]", row["texts"] or []) for run in _runs(text)]
    if doomed:
        con.register("showed_items", pa.Table.from_pylist(doomed))
        con.execute("INSERT INTO doomed FROM showed_items")


def _rows(con: duckdb.DuckDBPyConnection, query: str) -> Iterator[dict[str, object]]:
    for batch in con.sql(query).to_arrow_reader(8192):
        yield from batch.to_pylist()


def _letters(text: str) -> str:
    """Letters and digits of a text alone: what the cleaning for a prompt leaves as it is."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text.casefold())))


def _runs(text: str) -> list[str]:
    """A few runs of letters from the beginning of a text: a prompt that quotes the text holds one of them at least."""
    letters = _letters(text)[: _RUNS * _RUN_LETTERS]
    whole = [letters[at : at + _RUN_LETTERS] for at in range(0, len(letters) - _RUN_LETTERS + 1, _RUN_LETTERS)]
    return whole or [letters] if letters else []


def _quotes(prompt: object, runs: Sequence[str]) -> bool:
    said = _letters(str(prompt))
    return any(run in said for run in runs)


def _names(row: str, sides: Sequence[tuple[frozenset[str], frozenset[str]]]) -> bool:
    cells: dict[str, object] = orjson.loads(row)
    if any(cells.keys() & columns for columns, _ in sides):
        return any(cells[name] in ids for columns, ids in sides for name in cells.keys() & columns)
    everyone = sides[0][1] | sides[1][1]
    return any(piece in everyone for value in cells.values() for piece in pieces(str(value)))


def _is_other(ids: pa.ChunkedArray, erased: pa.Array) -> pa.ChunkedArray:
    return pc.invert(pc.is_in(ids, value_set=erased))


def _without_items(rows: pa.Table, name: str, beside: Sequence[str], erased: pa.Array) -> pa.Table:
    """`rows` whose lists `name` have lost the erased items; the lists `beside` them lose the same places."""
    lists = rows[name].combine_chunks()
    stays = _is_other(lists.flatten(), erased).to_numpy(zero_copy_only=False)
    owner = np.asarray(pc.list_parent_indices(lists))
    lengths = np.bincount(owner[stays], minlength=len(lists))
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    for column in (name, *beside):
        field = rows.schema.field(column)
        values = rows[column].combine_chunks().flatten().filter(pa.array(stays))
        cut = pa.ListArray.from_arrays(offsets, values, type=field.type)
        rows = rows.set_column(rows.schema.get_field_index(column), field, cut)
    return rows
