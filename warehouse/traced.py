"""Which stored texts a feature row was made of, found again from its lineage columns and checked by its digest.

The row names its source (a partition, an item's version, groups) and, by `texts_digest`, all of its texts. The calls
about that source are looked up as they stood when the row was made, and the digest says whether these were they.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from warehouse.answers import IMPORTED, answers_view
from warehouse.keys import digest, texts_digest
from warehouse.ledger import Ledger
from warehouse.schemas import GROUP_MEMBERS, GROUPS, REQUESTS, Rung, embeddings_schema
from warehouse.segments import segments
from warehouse.sql import moment, parquet_view, quote, records

Record = dict[str, Any]

GROUP_KINDS = {"user_id": ("group_likes", "group_dislikes"), "item_id": ("group_items",)}


@dataclass(frozen=True)
class Trace:
    """Calls about the row's source (`used` says which are in the vector), the groups it stands on, and whether the
    texts that are used have the digest that the row names."""

    texts: list[Record]
    groups: list[Record]
    complete: bool


@dataclass(frozen=True)
class Provenance:
    """The internal tables as they stood when a row was made, and what its publisher said it was made with."""

    con: duckdb.DuckDBPyConnection
    row: Mapping[str, Any]
    entity: str
    engine_id: str | None
    prompt_versions: Mapping[str, str]

    @classmethod
    def at(
        cls, con: duckdb.DuckDBPyConnection, root: Path, row: Mapping[str, Any], entity: str, lineage: Mapping[str, Any]
    ) -> "Provenance":
        """Views over the tables of `root`, less what is newer than `row`; `lineage` is that of the row's snapshot.

        Where that snapshot is gone, engine and prompt version are those of the row's own call.
        """
        ledger, made_at = Ledger(root), moment(row["created_at"])
        for name, schema in (("requests", REQUESTS), ("groups", GROUPS), ("group_members", GROUP_MEMBERS)):
            parquet_view(con, f"stored_{name}", ledger.files(name), schema)
            con.execute(f"CREATE TEMP VIEW {name} AS FROM stored_{name} WHERE created_at <= {made_at}")
        answers_view(con, segments(ledger, "knowledge"), until=row["created_at"])
        parquet_view(con, "embeddings", segments(ledger, "embeddings"), embeddings_schema(1))
        engine, versions = lineage.get("engine_id"), lineage.get("prompt_versions", {})
        if engine is None:
            own = records(
                con, "SELECT engine_id, kind, prompt_version FROM requests WHERE request_key = ?", [row["request_key"]]
            )
            engine = own[0]["engine_id"] if own else None
            versions = {call["kind"]: call["prompt_version"] for call in own}
        return cls(con, row, entity, engine, versions)

    def trace(self) -> Trace:
        """What the row was made of: of all that it may have been, what has the digest that it names."""
        candidates = self._of_a_user() if self.entity == "user_id" else self._of_an_item()
        if self.row["rung"] in (Rung.GROUP, Rung.GLOBAL):
            return self._of_groups(candidates[0])
        for texts in candidates:
            if self._names(_digest_of_own(texts), texts):
                return Trace(texts, [], True)
        return Trace(candidates[0], [], False)

    def _names(self, found: str, texts: Sequence[Record]) -> bool:
        if self.row["texts_digest"] is None:
            # A row of an older Lorestream, which names the newest of its texts only.
            return self.row["request_key"] in {text["request_key"] for text in texts if text["used"]}
        return bool(self.row["texts_digest"] == found)

    def _of_a_user(self) -> list[list[Record]]:
        """The calls about a user's partitions up to the row's own, with what is new in each and without."""
        where, arguments = "entity_id = ? AND partition_no <= ?", [self.row["user_id"], self.row["partition_no"]]
        summaries, shifts = (self._calls(kind, where, arguments) for kind in ("user_summary", "user_shift"))
        both = sorted([*summaries, *shifts], key=lambda text: (text["partition_no"], text["kind"] == "user_shift"))
        return [both, summaries]

    def _of_an_item(self) -> list[list[Record]]:
        """The call about the row's version of an item; and that with the calls back to the newest usable one."""
        calls = self._calls("item_facts", "entity_id = ? AND as_of <= ?", [self.row["item_id"], self.row["valid_from"]])
        own = [place for place, call in enumerate(calls) if call["source_digest"] == self.row["source_digest"]]
        last = own[-1] if own else len(calls) - 1
        usable = max((place for place in range(last + 1) if calls[place]["used"]), default=0)
        return [calls[last : last + 1] if own else [], calls[usable : last + 1]]

    def _of_groups(self, own: list[Record]) -> Trace:
        """The groups that stand in for `own`, which is no use: those that the entity is in, or else all of a kind."""
        kinds = GROUP_KINDS[self.entity]
        members = records(
            self.con,
            "SELECT kind, generation, group_id, joined_at FROM group_members WHERE entity_id = ? "
            "AND list_contains(?, kind)",
            [self.row[self.entity], list(kinds)],
        )
        generations = {row["generation"] for row in records(self.con, "SELECT DISTINCT generation FROM groups")}
        for generation in sorted(generations, reverse=True):
            places = {row["kind"]: row for row in members if row["generation"] == generation}
            in_groups = [self._standing(kind, generation, places[kind]) for kind in kinds if kind in places]
            averages = [self._standing(kind, generation, None) for kind in kinds]
            # Two kinds of groups may have been joined one after the other.
            for parts in (in_groups, *([part] for part in in_groups), averages, *([part] for part in averages)):
                known = [part for part in parts if part["texts_digest"]]
                if known and digest([part["texts_digest"] for part in known]) == self.row["texts_digest"]:
                    texts = [text for part in known for text in part["texts"]]
                    groups = [{k: v for k, v in part.items() if not k.startswith("texts")} for part in known]
                    return Trace([*own, *texts], groups, True)
        return Trace(own, [], False)

    def _standing(self, kind: str, generation: int, member: Record | None) -> Record:
        """What a group stands for: its own text, or the mean of the nearest groups that have usable ones."""
        tree = records(
            self.con,
            "SELECT group_id, parent_id, size, named, as_of FROM groups WHERE kind = ? AND generation = ? "
            "ORDER BY group_id",
            [kind, generation],
        )
        parents = {row["group_id"]: row["parent_id"] for row in tree}
        calls = {text["entity_id"]: text for text in self._calls(kind, "list_contains(?, entity_id)", [list(parents)])}
        leaves = [group for group in sorted(parents.keys() - set(parents.values())) if calls.get(group, {}).get("used")]
        group = None if member is None else member["group_id"]
        used = [group] if group in leaves else _nearest(group, leaves, parents) or leaves
        named = next((row for row in tree if row["group_id"] == group), {})
        return {
            "kind": kind,
            "generation": generation,
            "group_id": group,
            "joined_at": None if member is None else member["joined_at"],
            "size": named.get("size"),
            "named": named.get("named"),
            "mean_of": len(used),
            "texts": [calls[leaf] for leaf in used],
            "texts_digest": (calls[group]["request_key"] if used == [group] else digest(used)) if used else None,
        }

    def _calls(self, kind: str, where: str, arguments: Sequence[object]) -> list[Record]:
        """The answered call per partition or version, chosen as the adapter's room chooses it."""
        version = self.prompt_versions.get(kind)
        own = f"engine_id = {quote(self.engine_id or '')}"
        if version:
            own += f" AND r.prompt_version = {quote(version)}"
        encoder = quote(self.row["encoder_id"] or "")
        calls = records(
            self.con,
            f"""
            SELECT kind, entity_id, partition_no, as_of, request_key, source_digest, a.status, a.reason,
                   a.text, prompt, r.prompt_version, engine_id, model, sampling, verification, pool_id, attempt,
                   r.created_at AS asked_at, a.created_at AS answered_at,
                   a.status = 'ok' AND request_key IN (SELECT request_key FROM embeddings WHERE encoder_id = {encoder})
                       AS used
            FROM requests r JOIN answers a USING (request_key)
            WHERE kind = {quote(kind)} AND {where} AND (({own}) OR starts_with(engine_id, {quote(IMPORTED)}))
            QUALIFY row_number() OVER (
                PARTITION BY entity_id, partition_no, source_digest
                ORDER BY a.status = 'ok' DESC, {own} DESC, r.created_at DESC, request_key
            ) = 1
            ORDER BY entity_id, partition_no, as_of, source_digest
            """,
            arguments,
        )
        return calls


def _digest_of_own(texts: Sequence[Record]) -> str:
    """`texts_digest` of a row made of these calls about one entity, in order of partition."""
    shifts = {
        text["partition_no"]: text["request_key"] for text in texts if text["kind"] == "user_shift" and text["used"]
    }
    so_far = ""
    for text in texts:
        if text["kind"] == "user_shift":
            continue
        made = text["request_key"] if text["used"] else ""
        if text["partition_no"] in shifts:
            made = texts_digest([made, shifts[text["partition_no"]]])
        so_far = texts_digest([so_far, made]) if so_far and made else made or so_far
    return so_far


def _nearest(group: str | None, leaves: Sequence[str], parents: Mapping[str, str | None]) -> list[str]:
    """Of `leaves` those below the nearest ancestor of `group` that has any; all of them for who is in no group."""
    if group is None:
        return list(leaves)
    above = parents.get(group)
    while above is not None:
        below = [leaf for leaf in leaves if _is_below(leaf, above, parents)]
        if below:
            return below
        above = parents.get(above)
    return []


def _is_below(group: str, above: str, parents: Mapping[str, str | None]) -> bool:
    step: str | None = parents.get(group)
    while step is not None and step != above:
        step = parents.get(step)
    return step == above
