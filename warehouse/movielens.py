"""Reads MovieLens as it is published into the input contract: behaviours, items and users.

Three layouts: `*.dat` (ml-1m, ml-10M), `*.csv` (ml-20m, ml-25m, ml-latest) and Parquet tables of the same columns;
the first two as a folder or as the official zip. Nothing is sampled, filtered or re-timed.
"""

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from warehouse.errors import InputError
from warehouse.schemas import BEHAVIOURS, DEFAULT_ACTION, TIMESTAMP
from warehouse.store import write_table

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("genres", pa.list_(pa.string()), nullable=False),
        pa.field("year", pa.int32()),
    ]
)
USERS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("gender", pa.string()),
        pa.field("age", pa.string()),
        pa.field("occupation", pa.string()),
    ]
)

# The codes of ml-1m's README.
GENDERS = {"F": "female", "M": "male"}
AGES = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56 or older"}
OCCUPATIONS = (
    "other",
    "academic or educator",
    "artist",
    "clerical or admin",
    "college or graduate student",
    "customer service",
    "doctor or health care",
    "executive or managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales or marketing",
    "scientist",
    "self-employed",
    "technician or engineer",
    "tradesman or craftsman",
    "unemployed",
    "writer",
)
NO_GENRES = "(no genres listed)"

# Layout -> ratings and movies; a file of users beside them is read where there is one.
LAYOUTS = {
    "dat": ("ratings.dat", "movies.dat"),
    "csv": ("ratings.csv", "movies.csv"),
    "parquet": ("ratings.parquet", "movies.parquet"),
}
_RATINGS_HEADER = "userId,movieId,rating,timestamp"
_MOVIES_HEADER = "movieId,title,genres"
# `Seven Up (1964)`, and `Some Series (2006-2007)` or `(2006-)` in the newer sets.
_YEAR = re.compile(r"\((\d{4})(?:[-\u2013]\d{0,4})?\)\s*$")


@dataclass(frozen=True)
class MovieLens:
    """A MovieLens set in the input contract, and what a reader of it should know.

    behaviours: BEHAVIOURS, in the order of the file. items: ITEMS. users: USERS, None where the set has none.
    """

    behaviours: pa.Table
    items: pa.Table
    users: pa.Table | None
    notes: list[str]


@dataclass(frozen=True)
class _Files:
    """The files of one set. `open` gives a binary stream by file name, `origin` names a file in messages."""

    layout: str
    names: frozenset[str]
    open: Callable[[str], IO[bytes]]
    origin: Callable[[str], str]


def read_movielens(path: Path) -> MovieLens:
    """The set in the folder or zip `path`, or in a single folder inside it.

    Raises InputError naming the files looked for where there is no set, or file and line where one is malformed.
    """
    notes: list[str] = []
    with _located(path) as files:
        if files.layout == "dat":
            behaviours, items = _ratings(files, "ratings.dat", "::"), _movies_dat(files)
            users = _users_dat(files) if "users.dat" in files.names else None
        elif files.layout == "csv":
            behaviours, items, users = _ratings(files, "ratings.csv", ","), _movies_csv(files), None
        else:
            behaviours, notes = _ratings_parquet(files)
            items = _movies_parquet(files)
            users = _users_parquet(files) if "users.parquet" in files.names else None
    if users is None:
        notes.append("The set says nothing about its users: there is no users table.")
    return MovieLens(behaviours, items, users, [*notes, *_ties(behaviours)])


def import_movielens(path: Path, out: Path) -> dict[str, object]:
    """Counts, files and notes of the set at `path`, after writing it to `out` as input tables in Parquet.

    Keys: behaviours, items, users (0 without a users table), files, notes. The set is read whole before a file is
    written; each is written whole or not at all. Raises InputError like `read_movielens`.
    """
    found = read_movielens(path)
    tables = {"behaviours": found.behaviours, "items": found.items, "users": found.users}
    notes = list(found.notes)
    files: list[str] = []
    for name, table in tables.items():
        target = out / f"{name}.parquet"
        if table is not None:
            files.append(write_table(target, table).path)
        elif target.exists():
            notes.append(f"{target} is of an earlier import and does not belong to this set; remove it.")
    counts = {name: 0 if table is None else table.num_rows for name, table in tables.items()}
    return {**counts, "files": files, "notes": notes}


@contextmanager
def _located(path: Path) -> Iterator[_Files]:
    """The files of the set at `path`. Raises InputError where there is none."""
    if path.is_dir():
        listing = {str(file.relative_to(path)): file for file in [*path.glob("*"), *path.glob("*/*")] if file.is_file()}
        layout, prefix = _layout(path, sorted(listing))

        def from_folder(name: str) -> IO[bytes]:
            try:
                return (path / prefix / name).open("rb")
            except OSError as error:
                raise InputError(f"{path / prefix / name} cannot be read: {error.strerror or error}.") from error

        names = frozenset(name.removeprefix(prefix) for name in listing if name.startswith(prefix))
        yield _Files(layout, names, from_folder, lambda name: str(path / prefix / name))
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is neither a folder nor a readable zip file ({error}). Give the folder or the zip as it was "
            "downloaded from grouplens.org."
        ) from error
    with archive:
        members = [name for name in archive.namelist() if not name.endswith("/")]
        layout, prefix = _layout(path, sorted(members))
        try:
            yield _Files(
                layout,
                frozenset(name.removeprefix(prefix) for name in members if name.startswith(prefix)),
                lambda name: archive.open(prefix + name),
                lambda name: f"{path}/{prefix}{name}",
            )
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(f"{path} is damaged: {error}. Download it again.") from error


def _layout(path: Path, names: Sequence[str]) -> tuple[str, str]:
    """Layout of a set and the folder inside `path` (with a slash, or empty) that holds it."""
    for depth in (0, 1):
        for layout, (ratings, movies) in LAYOUTS.items():
            for name in names:
                prefix = name.removesuffix(ratings)
                if prefix != name and prefix.count("/") == depth and (not prefix or prefix.endswith("/")):
                    if prefix + movies not in names:
                        raise InputError(f"{path} has {name}, but not {prefix}{movies} beside it. Add that file.")
                    return layout, prefix
    wanted = "; ".join(", ".join(files) for files in LAYOUTS.values())
    held = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"
    raise InputError(
        f"{path} holds no MovieLens set. Looked for one of these groups, in it and one folder down: {wanted}. It "
        f"holds {held}. Give the folder or the zip as it was downloaded from grouplens.org."
    )


def _malformed(origin: str, line: int, text: str, form: str) -> InputError:
    return InputError(
        f"{origin}, line {line}, is malformed: {text[:80]!r} is not `{form}`. Mend or remove that line, or download "
        "the set again."
    )


def _text(files: _Files, name: str, fallback: str | None) -> str:
    """The file as text: UTF-8, or `fallback` where it is not (ml-1m is latin-1, ml-10M is UTF-8)."""
    with files.open(name) as stream:
        content = stream.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if fallback is not None:
            return content.decode(fallback)
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{files.origin(name)}, line {line}, is not UTF-8. Download the set again.") from error


def _ratings(files: _Files, name: str, separator: str) -> pa.Table:
    """BEHAVIOURS of a text file of `user, movie, rating, seconds since 1970`; a CSV file starts with a header."""
    columns = ["user_id", "item_id", "value", "ts"]
    try:
        with files.open(name) as stream:
            if separator == ",":
                header = stream.readline().decode("utf-8-sig", "replace").strip()
                if header != _RATINGS_HEADER:
                    raise _malformed(files.origin(name), 1, header, _RATINGS_HEADER)
                source: IO[bytes] = stream
            else:
                content = stream.read()
                if b"," in content:
                    raise pa.ArrowInvalid("a comma")
                source = io.BytesIO(content.replace(separator.encode(), b","))
            table = pa.csv.read_csv(
                source,
                read_options=pa.csv.ReadOptions(column_names=columns),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict(zip(columns, [pa.int64(), pa.int64(), pa.float32(), pa.int64()], strict=True)),
                    null_values=[],
                ),
            )
            if not pc.all(pc.is_finite(table["value"]), min_count=0).as_py():
                raise pa.ArrowInvalid("a rating that is no number")
            return _behaviours(table["user_id"], table["item_id"], table["ts"], table["value"])
    except pa.ArrowException as error:
        # The fast reader does not say where it failed.
        raise _first_bad_rating(files, name, separator) or InputError(
            f"{files.origin(name)} cannot be read: {error}. Download the set again."
        ) from error


def _first_bad_rating(files: _Files, name: str, separator: str) -> InputError | None:
    """What is wrong with the first malformed line of a file of ratings, or None where all are well formed."""
    number = r"\d{1,18}"
    form = re.compile(separator.join([number, number, r"\d+(?:\.\d*)?", number]))
    with files.open(name) as stream:
        for place, line in enumerate(stream, start=1):
            text = line.decode("latin-1").strip()
            if text and not form.fullmatch(text) and not (separator == "," and place == 1):
                shown = separator.join(["user", "movie", "rating", "seconds"])
                return _malformed(files.origin(name), place, text, shown)
    return None


def _behaviours(users: pa.Array, items: pa.Array, seconds: pa.Array, values: pa.Array) -> pa.Table:
    columns = [
        users.cast(pa.string()),
        items.cast(pa.string()),
        seconds.cast(pa.int64()).cast(pa.timestamp("s", tz="UTC")).cast(TIMESTAMP),
        values.cast(pa.float32()),
        pa.repeat(pa.scalar(DEFAULT_ACTION, pa.string()), len(users)),
    ]
    return pa.Table.from_arrays(columns, schema=BEHAVIOURS)


def _item(item_id: str, title: str, genres: Sequence[str]) -> dict[str, object]:
    year = _YEAR.search(title)
    return {"item_id": item_id, "title": title, "genres": list(genres), "year": int(year[1]) if year else None}


def _split_genres(text: str) -> list[str]:
    return [] if text.strip() in {"", NO_GENRES} else text.strip().split("|")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank; only line feeds end a line."""
    for place, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield place, line.rstrip("\r")


def _movies_dat(files: _Files) -> pa.Table:
    rows = []
    for place, line in _lines(_text(files, "movies.dat", "latin-1")):
        item_id, _, rest = line.partition("::")
        title, separator, genres = rest.rpartition("::")
        if not item_id.isdecimal() or not separator:
            raise _malformed(files.origin("movies.dat"), place, line, "movie::title::genre|genre")
        rows.append(_item(item_id, title, _split_genres(genres)))
    return pa.Table.from_pylist(rows, schema=ITEMS)


def _movies_csv(files: _Files) -> pa.Table:
    origin = files.origin("movies.csv")
    reader = csv.reader(io.StringIO(_text(files, "movies.csv", None), newline=""), strict=True)
    rows = []
    place = 1
    try:
        for fields in reader:
            if place == 1:
                if ",".join(fields) != _MOVIES_HEADER:
                    raise _malformed(origin, 1, ",".join(fields), _MOVIES_HEADER)
            elif fields:
                if len(fields) != 3 or not fields[0].isdecimal():
                    raise _malformed(origin, place, ",".join(fields), _MOVIES_HEADER)
                rows.append(_item(fields[0], fields[1], _split_genres(fields[2])))
            place = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{origin}, line {place}: {error}. Mend that line, or download the set again.") from error
    return pa.Table.from_pylist(rows, schema=ITEMS)


def _users_dat(files: _Files) -> pa.Table:
    rows = []
    for place, line in _lines(_text(files, "users.dat", "latin-1")):
        fields = line.split("::")
        person = None
        if len(fields) == 5 and all(fields[index].strip().isdecimal() for index in (0, 2, 3)):
            person = _person(fields[0], fields[1], int(fields[2]), int(fields[3]))
        if person is None:
            form = "user::gender::age code::occupation code::zip code"
            raise _malformed(files.origin("users.dat"), place, line, form)
        rows.append(person)
    return pa.Table.from_pylist(rows, schema=USERS)


def _person(user_id: str, gender: str, age: int, occupation: int) -> dict[str, str] | None:
    """A row of USERS from ml-1m's codes, or None for a code it does not have. The zip code is left out."""
    if gender not in GENDERS or age not in AGES or not 0 <= occupation < len(OCCUPATIONS):
        return None
    return {"user_id": user_id, "gender": GENDERS[gender], "age": AGES[age], "occupation": OCCUPATIONS[occupation]}


def _parquet(files: _Files, name: str, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    try:
        with files.open(name) as stream:
            file = pq.ParquetFile(pa.BufferReader(stream.read()))
            absent = [column for column in columns if column not in file.schema_arrow.names]
            if absent:
                raise InputError(
                    f"{files.origin(name)} has no column {', '.join(absent)}; it has "
                    f"{', '.join(file.schema_arrow.names)}. For another layout, map columns in [inputs] instead."
                )
            wanted = [*columns, *(column for column in optional if column in file.schema_arrow.names)]
            table = file.read(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{files.origin(name)} cannot be read as Parquet: {error}. Restore the file.") from error
    for column in columns:
        if table[column].null_count:
            raise InputError(f"{files.origin(name)} has nulls in `{column}`. Remove those rows.")
    return table


def _ratings_parquet(files: _Files) -> tuple[pa.Table, list[str]]:
    """BEHAVIOURS and notes; the notes tell how many timestamps the set's own columns call imputed."""
    table = _parquet(
        files,
        "ratings.parquet",
        ["user_id", "item_id", "rating", "timestamp"],
        ["timestamp_imputed", "chrono_rank"],
    )
    notes = []
    if "timestamp_imputed" in table.column_names:
        imputed = table["timestamp_imputed"]
        note = (
            f"{pc.sum(imputed, min_count=0).as_py():,} of {table.num_rows:,} timestamps are imputed, taken as they are"
        )
        if "chrono_rank" in table.column_names:
            guesses = pc.sum(pc.and_(imputed, pc.is_null(table["chrono_rank"])), min_count=0).as_py()
            note += f"; {guesses:,} of them are rough guesses, whose order within the user is not known"
        notes.append(note + ".")
    return _behaviours(table["user_id"], table["item_id"], table["timestamp"], table["rating"]), notes


def _movies_parquet(files: _Files) -> pa.Table:
    table = _parquet(files, "movies.parquet", ["item_id", "title", "genres"])
    rows = [_item(str(row["item_id"]), row["title"], row["genres"]) for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, schema=ITEMS)


def _users_parquet(files: _Files) -> pa.Table:
    """USERS; where occupations are numbers they and the ages are ml-1m's codes, otherwise both stand as they are."""
    table = _parquet(files, "users.parquet", ["user_id", "gender", "age", "occupation"])
    coded = pa.types.is_integer(table["occupation"].type)
    rows = []
    for row in table.to_pylist():
        user_id = str(row["user_id"])
        if coded:
            person = _person(user_id, row["gender"], row["age"], row["occupation"])
            if person is None:
                raise InputError(
                    f"{files.origin('users.parquet')}: user {user_id} has a code that ml-1m does not have "
                    f"(gender {row['gender']!r}, age {row['age']}, occupation {row['occupation']}). Correct that row."
                )
        else:
            gender = GENDERS.get(row["gender"], row["gender"])
            person = {"user_id": user_id, "gender": gender, "age": str(row["age"]), "occupation": row["occupation"]}
        rows.append(person)
    return pa.Table.from_pylist(rows, schema=USERS)


def _ties(behaviours: pa.Table) -> list[str]:
    """A note on events of one user in one second, whose true order no timestamp tells."""
    groups = (
        behaviours.select(["user_id", "ts"]).group_by(["user_id", "ts"]).aggregate([([], "count_all")])["count_all"]
    )
    tied = pc.sum(groups.filter(pc.greater(groups, 1)), min_count=0).as_py()
    if not tied:
        return []
    return [
        f"{tied:,} of {behaviours.num_rows:,} events share their second with another of the same user; such events "
        "are ordered by item id."
    ]
