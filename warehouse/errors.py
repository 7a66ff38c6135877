"""Errors of the whole project: one root, subclasses that carry their values and survive pickling.

The command line turns `exit_code` into its own: 1 failed, 2 usage, configuration or input, 3 another writer.
"""

from collections.abc import Mapping
from typing import Any


class LorestreamError(Exception):
    """Root of every error this project raises on purpose; the message says what to do next."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses build their message from typed arguments, so the default (re-calling with the message) would fail.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(cls: type[LorestreamError], args: tuple[Any, ...], state: dict[str, Any]) -> LorestreamError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(LorestreamError):
    """A mistake in the call, the configuration or the input that the user can mend."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or value that cannot be used."""


class InputError(UsageError):
    """An input file, table or model that cannot be read or breaks its contract as a whole."""


class MissingColumn(InputError):
    """A required column is absent from an input or a stored table."""

    def __init__(self, table: str, column: str, found: list[str], source: str, is_csv: bool = False) -> None:
        self.table, self.column, self.found, self.source = table, column, found, source
        header = " The first line of a CSV file must hold the column names." if is_csv else ""
        super().__init__(
            f"`{table}` from {source} has no column `{column}`; it has {', '.join(found) or 'no columns'}. "
            f'Rename the column, or map it in the config: [inputs.{table}.columns] {column} = "its name there".{header}'
        )


class WrongType(InputError):
    """A column holds a type that cannot be read as the contract's."""

    def __init__(self, table: str, column: str, expected: str, found: str, source: str) -> None:
        self.table, self.column, self.expected, self.found, self.source = table, column, expected, found, source
        super().__init__(
            f"`{table}.{column}` from {source} is {found}, the contract says {expected}. "
            "Cast the column in the input, or point the config at a query that casts it."
        )


class TooManyRejected(InputError):
    """The share of input rows that break the contract passes `max_rejected_fraction`.

    `reasons` counts rows by reason, `examples` holds the first row of each as text, `advice` says what may help more.
    """

    def __init__(
        self,
        table: str,
        rejected: int,
        total: int,
        limit: float,
        reasons: Mapping[str, int],
        examples: Mapping[str, str],
        advice: str = "",
    ) -> None:
        self.table, self.rejected, self.total, self.limit, self.reasons = table, rejected, total, limit, reasons
        self.examples = examples
        listing = "; ".join(f"{reason}: {reasons[reason]}, first {examples[reason]}" for reason in sorted(reasons))
        super().__init__(
            f"{rejected} of {total} rows of `{table}` break the contract ({listing}). The limit is {limit:.1%}. "
            f"Nothing was ingested. Mend the input, or raise `inputs.max_rejected_fraction`.{advice and ' ' + advice}"
        )


class WarehouseNotFound(UsageError):
    """There is no warehouse at a path."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"There is no warehouse at {path}. Make one with `lorestream init DIR`, then `lorestream run`; one that "
            "lies in a `store` is fetched by `lorestream sync`."
        )


class CorruptWarehouse(LorestreamError):
    """A stored file is missing or does not hold what the manifest or ledger says."""


class WriterBusy(LorestreamError):
    """Another process holds the warehouse's writer lock."""

    exit_code = 3

    def __init__(self, path: str, owner: str, host: str, pid: int, since: str, until: str = "") -> None:
        self.path, self.owner, self.host, self.pid, self.since, self.until = path, owner, host, pid, since, until
        ends = f" If that machine is gone, its lease ends by itself at {until}." if until else ""
        super().__init__(
            f"The warehouse {path} is being written by {owner} (pid {pid} on {host}, since {since}). "
            "Wait for it to end (`run`, `train`, `backfill`, `compact` and `erase` take --wait), or stop that process; "
            f"readers are not affected.{ends}"
        )


class StoreUnavailable(LorestreamError):
    """An object store that does not answer, or not as it should."""

    def __init__(self, url: str, said: str) -> None:
        self.url, self.said = url, said
        super().__init__(
            f"{url} cannot be reached ({said}). Check the network and the endpoint. What was finished stands in the "
            "local folder: run the same command again to go on."
        )


class StoreRefused(UsageError):
    """An object store that does not let us in, or does not have the place."""

    def __init__(self, url: str, said: str) -> None:
        self.url, self.said = url, said
        super().__init__(
            f"{url} refuses what is asked of it ({said}). Check that the bucket exists, and that the credentials (of "
            "S3 in the environment or in ~/.aws) may list, read, write and delete below it."
        )


class StoreMoved(LorestreamError):
    """Another machine has written to the store since this one last did."""

    exit_code = 3

    def __init__(self, url: str, number: int) -> None:
        self.url, self.number = url, number
        super().__init__(
            f"Generation {number} of {url} was written by another machine in the meantime, and nothing of this one's "
            "was taken over. Its lease had run out, or somebody wrote without one: see that a single machine writes, "
            "and that their clocks agree. What this one has finished since stands in its folder alone; the next "
            "command says what to do with it."
        )


class CopyDiverged(UsageError):
    """A local folder that is no copy of what the store holds, or holds what the store has gone on without."""

    def __init__(self, root: str, url: str, what: str, advice: str) -> None:
        self.root, self.url, self.what, self.advice = root, url, what, advice
        super().__init__(f"{root} and the store {url} do not go together: {what}. {advice}")
