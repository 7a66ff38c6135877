"""Which stored text stands for a call: of several attempts the usable one, of several engines the configured one."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import duckdb

from warehouse.schemas import KNOWLEDGE
from warehouse.sql import moment, parquet_view

# Texts made elsewhere stand under engine ids that begin so.
IMPORTED = "import:"


def answers_view(
    con: duckdb.DuckDBPyConnection, knowledge: Sequence[Path], until: datetime | None = None, among: str | None = None
) -> None:
    """Make `answers`: of each answered key the attempt that is used, a usable one if there is any, else the newest.

    With `until`, as it was at that time; with `among`, only of the keys in that relation's column request_key.
    """
    parquet_view(con, "stored_knowledge", knowledge, KNOWLEDGE, grown=True)
    con.execute(
        "CREATE OR REPLACE TEMP VIEW answers AS SELECT * FROM stored_knowledge "
        f"{'' if among is None else f'SEMI JOIN {among} USING (request_key) '}"
        f"WHERE {'true' if until is None else f'created_at <= {moment(until)}'} QUALIFY row_number() OVER "
        "(PARTITION BY request_key ORDER BY status = 'ok' DESC, attempt DESC NULLS LAST, created_at) = 1"
    )
