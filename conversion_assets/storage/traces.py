"""The search for what is left of an erased lead or client: the proof of an erasure.

What is looked for
    Ids, e-mail addresses, profile URLs, telephone numbers (as written, and their digits alone) and
    full names. In text an id counts only where no letter or digit touches it; an id of digits
    alone, or of fewer than four characters, only as a whole value, because numbers are everywhere.

Whose rows
    Those of the client and those of nobody. Other clients' rows are other clients': the same
    person may be their lead. Rows of other leads of the same client are looked at too; an e-mail
    address or profile found there is a trace, since it names the person, while a name or telephone
    number there may well be a namesake's or a switchboard's.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, inspect, text

from conversion_assets.domain.errors import InputError
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import reported_connection_errors
from conversion_assets.storage.erasures import Erasure

SHORTEST_ID = 4
"""Shorter ids stand in other words by chance."""
SHORTEST_PHONE = 9
"""Digits of a telephone number; fewer stand in other numbers by chance."""
ROWS_PER_SEARCH = 20_000
"""Rows of text in memory at once."""
BYTES_PER_SEARCH = 16 * 1024 * 1024
"""Bytes of a file in memory at once."""
TEXTS_PER_SEARCH = 200_000
"""Texts looked for at once: their automaton takes some 200 MB."""
_EXAMPLES = 3

_NEIGHBOUR = r"[0-9A-Za-z_]"


@dataclass(frozen=True)
class Identity:
    """What tells the erased apart.

    Attributes:
        erasure: Whom.
        ids: Their ids: the leads', or the client's.
        contacts: E-mail addresses and profile URLs, which name one person.
        names: Full names and telephone numbers, which others may share.
    """

    erasure: Erasure
    ids: tuple[str, ...]
    contacts: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that can be looked for in running text."""
        return (*filter(is_distinctive, self.ids), *self.contacts, *self.names)


def identify(erasure: Erasure, leads: pl.DataFrame, more: Iterable[str] = ()) -> Identity:
    """What to look for.

    Args:
        erasure: Whom.
        leads: Result of `erasures.load_identities`, read before the rows are deleted.
        more: Further texts to look for.
    """
    full = pl.concat_str(
        pl.col("first_name").str.strip_chars(), pl.col("last_name").str.strip_chars(), separator=" "
    )
    phone = pl.col("phone").str.strip_chars()
    digits = phone.str.replace_all(r"\D", "")
    columns = leads.select(
        full.alias("name"),
        phone.alias("phone"),
        pl.when(digits.str.len_chars() >= SHORTEST_PHONE).then(digits).alias("digits"),
    )
    contacts = [
        leads[name].str.strip_chars() for name in ("email", "personal_email", "linkedin_url")
    ]
    return Identity(
        erasure,
        ids=erasure.lead_ids or (erasure.client_id,),
        contacts=_distinct([*contacts, pl.Series(list(more), dtype=pl.String)]),
        names=_distinct(columns.get_columns()),
    )


def _distinct(columns: list[pl.Series]) -> tuple[str, ...]:
    found = pl.concat([column.rename("text") for column in columns]).drop_nulls().unique()
    return tuple(sorted(text for text in found if len(text) >= SHORTEST_ID))


def is_distinctive(identifier: str) -> bool:
    """Whether an id can be told from other text.

    Example:
        >>> is_distinctive("lead-00017"), is_distinctive("4711"), is_distinctive("a1")
        (True, False, False)
    """
    return len(identifier) >= SHORTEST_ID and not identifier.isdigit()


@dataclass
class Searched:
    """What was looked through at one place, and what was found there.

    Attributes:
        place: Table, folder or file.
        looked_at: How much, in words.
        found: Traces of the erased: must be 0.
        shared: Names or telephone numbers in rows of other leads; no proof of anything.
        where: The first traces.
    """

    place: str
    looked_at: str
    found: int = 0
    shared: int = 0
    where: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        """Count a trace."""
        self.found += 1
        if len(self.where) < _EXAMPLES and where not in self.where:
            self.where.append(where)


class Matcher:
    """Finds some of many texts in columns of text and in bytes."""

    def __init__(self, texts: Iterable[str], ids: Iterable[str] = ()) -> None:
        self.texts = sorted({one for text in texts for one in _spellings(text)})
        self.ids = frozenset(ids)
        self._parts = [
            self.texts[start : start + TEXTS_PER_SEARCH]
            for start in range(0, len(self.texts), TEXTS_PER_SEARCH)
        ]

    def select(self, column: pl.Series) -> pl.Series:
        """Whether each value holds a text, or is an id."""
        found = column.is_in(sorted(self.ids)).fill_null(False)
        for part in self._parts:
            suspect = column.str.contains_any(part, ascii_case_insensitive=True).fill_null(False)
            found |= _confirm(column, suspect, part)
        return found

    def list_found(self, data: bytes, *, delimited: bool) -> set[str]:
        """Texts that stand in some bytes.

        Args:
            data: The bytes.
            delimited: Only where no letter or digit touches them. A database's pages put one
                column's text right after another's: there this would miss.
        """
        words = data.decode("latin-1")
        series = pl.Series([words])
        found = set()
        for part in self._parts:
            spelled = {text.encode().decode("latin-1"): text for text in part}
            matches = series.str.extract_many(
                list(spelled), ascii_case_insensitive=True, overlapping=True
            )
            suspects = {match.lower() for match in matches[0]}
            for spelling, text_found in spelled.items():
                if spelling.lower() in suspects and (
                    not delimited or _delimited(spelling).search(words)
                ):
                    found.add(text_found)
        return found


def _spellings(text_: str) -> set[str]:
    """A text as it is, and as JSON escapes it."""
    return {text_, json.dumps(text_)[1:-1], json.dumps(text_, ensure_ascii=False)[1:-1]}


def _delimited(text_: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!{_NEIGHBOUR}){re.escape(text_)}(?!{_NEIGHBOUR})", re.IGNORECASE)


def _confirm(column: pl.Series, suspect: pl.Series, texts: list[str]) -> pl.Series:
    """Keep the values in which one of the texts stands by itself."""
    if not suspect.any():
        return suspect
    places = suspect.arg_true()
    values = column.gather(places)
    matches = values.str.extract_many(texts, ascii_case_insensitive=True, overlapping=True)
    confirmed = [
        any(_delimited(text).search(value) for text in set(found))
        for value, found in zip(values, matches, strict=True)
    ]
    return suspect.scatter(places, pl.Series(confirmed, dtype=pl.Boolean))


# -- places ------------------------------------------------------------------------------------

_TEXT_TYPES = ("TEXT", "VARCHAR", "JSON", "CHAR")
_OWN_TABLES = ("erasures", "alembic_version")
"""What is kept about erasures on purpose, and a revision."""


def search_database(engine: Engine, identity: Identity) -> list[Searched]:
    """Look through every text column of every table.

    Raises:
        UnreachableError: the database cannot be reached.
    """
    found = []
    with reported_connection_errors(engine), engine.connect() as connection:
        inspector = inspect(connection)
        for table in sorted(set(inspector.get_table_names()) - set(_OWN_TABLES)):
            columns = {c["name"]: str(c["type"]).upper() for c in inspector.get_columns(table)}
            if any(kind.startswith(_TEXT_TYPES) for kind in columns.values()):
                found.append(_search_table(connection, identity, table, columns))
    return found


def _search_table(
    connection: Connection, identity: Identity, table: str, columns: dict[str, str]
) -> Searched:
    owner = "id" if table == "clients" else "client_id" if "client_id" in columns else None
    lead = "id" if table == "leads" else "lead_id" if "lead_id" in columns else None
    names = [name for name, kind in columns.items() if kind.startswith(_TEXT_TYPES)]
    if identity.erasure.lead_ids is not None:
        # The client itself is not what is looked for.
        names = [name for name in names if name != owner]
    chosen = ", ".join(f'CAST("{name}" AS TEXT)' for name in names)
    sql = f'SELECT {chosen} FROM "{table}"'  # noqa: S608 - names the database itself told
    where = {"owner": identity.erasure.client_id} if owner else {}
    if owner:
        sql += f' WHERE "{owner}" = :owner' + (
            " OR client_id IS NULL" if table == "alert_outbox" else ""
        )
    strong = Matcher((*filter(is_distinctive, identity.ids), *identity.contacts), identity.ids)
    weak = Matcher(identity.names)
    searched = Searched(f"table {table}", "")
    rows = 0
    for part in connection.execute(text(sql), where).partitions(ROWS_PER_SEARCH):
        rows += len(part)
        frame = pl.DataFrame(
            [tuple(row) for row in part], schema=dict.fromkeys(names, pl.String()), orient="row"
        )
        # Rows of another lead of the client may hold a name like it.
        others = pl.repeat(False, frame.height, dtype=pl.Boolean, eager=True)
        if lead is not None and identity.erasure.lead_ids is not None:
            others = ~frame[lead].is_in(list(identity.erasure.lead_ids)).fill_null(False)
        _count(searched, frame, strong, weak, others)
    searched.looked_at = f"{rows:,} rows"
    return searched


def _count(
    searched: Searched, frame: pl.DataFrame, strong: Matcher, weak: Matcher, others: pl.Series
) -> None:
    for name in frame.columns:
        hit = strong.select(frame[name])
        named = weak.select(frame[name]) & ~hit
        searched.shared += int((named & others).sum())
        hit |= named & ~others
        searched.found += int(hit.sum())
        if hit.any() and len(searched.where) < _EXAMPLES:
            keys = frame.filter(hit).select(
                c for c in ("id", "lead_id", "pattern_type") if c in frame.columns
            )
            shown = [" ".join(str(v) for v in row if v) for row in keys.head(_EXAMPLES).rows()]
            searched.where += [f"{name} of {one}" if one else name for one in shown or [name]]


def search_store(store: FeatureStore, erasure: Erasure) -> Searched:
    """Look for rows of the client or leads in every file of the store, current or not.

    Raises:
        InputError: the store cannot be read.
    """
    files = [path for path in store.list_files() if path.endswith(".parquet")]
    searched = Searched("columnar store", f"{len(files):,} files")
    wanted = pl.col("client_id") == erasure.client_id
    if erasure.lead_ids is not None:
        wanted &= pl.col("lead_id").is_in(list(erasure.lead_ids))
    for path in files:
        try:
            rows = store.scan_file(path).filter(wanted).select(pl.len()).collect().item()
        except (FileNotFoundError, pl.exceptions.PolarsError) as error:
            searched.add(f"{path} cannot be read: {' '.join(str(error).split())[:100]}")
            continue
        searched.found += rows
        if rows:
            searched.where.append(f"{path}: {rows} rows")
    return searched


def make_row_test(identity: Identity) -> Callable[[str, str], bool]:
    """Return the test for rows in quarantine: is this row, as JSON text, about the erased?

    A row that names another client is another client's. One that names none is judged by ids and
    by whatever else it holds of the person.
    """
    strong = Matcher((*identity.contacts,))
    weak = Matcher(identity.names)
    erasure = identity.erasure

    def is_meant(table: str, line: str) -> bool:
        try:
            record = json.loads(line)["record"] or {}
        except (ValueError, KeyError, TypeError):
            record = {}
        stated = {
            name: str(record.get(name) or "").strip() for name in ("id", "client_id", "lead_id")
        }
        client = stated["id"] if table == "clients" else stated["client_id"]
        if client and client != erasure.client_id:
            return False
        if erasure.lead_ids is None and client:
            return True
        lead = stated["id"] if table == "leads" else stated["lead_id"]
        if erasure.lead_ids is not None and lead in erasure.lead_ids:
            return True
        column = pl.Series([line])
        if bool(strong.select(column)[0]):
            return True
        # A namesake who is another lead stays.
        return not lead and bool(weak.select(column)[0])

    return is_meant


def search_files(
    folders: Iterable[Path], identity: Identity, *, except_: Iterable[Path] = ()
) -> list[Searched]:
    """Look through the bytes of every file in some folders.

    Args:
        folders: Each is one place.
        identity: What to look for.
        except_: Files and folders that are looked through in another way.
    """
    matcher = Matcher(identity.texts)
    skipped = [path.resolve() for path in except_]
    found = []
    for folder in folders:
        files = [
            path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not any(path.resolve().is_relative_to(one) for one in skipped)
        ]
        searched = Searched(str(folder), "")
        size = 0
        for path in files:
            texts: set[str] = set()
            for chunk in _chunks(path, matcher):
                size += len(chunk)
                texts |= matcher.list_found(chunk, delimited=True)
            for _ in texts:
                searched.add(str(path.relative_to(folder)))
        searched.looked_at = f"{len(files):,} files, {size / 1e6:,.1f} MB"
        found.append(searched)
    return found


def _chunks(path: Path, matcher: Matcher) -> Iterator[bytes]:
    """Bytes of a file in parts that overlap by the longest text.

    Another process reads: where this one closes a database file of SQLite's, all locks go that its
    own connections hold on it, and the next process to leave takes the log from under them
    (https://sqlite.org/howtocorrupt.html, 2.2).

    Raises:
        InputError: the file is there and cannot be read.
    """
    overlap = max((len(text.encode()) for text in matcher.texts), default=1) + 2
    command = ["/bin/cat", "--", str(path.absolute())]
    with Popen(command, stdout=PIPE, stderr=DEVNULL) as reader:  # noqa: S603 - a path of ours
        assert reader.stdout is not None  # noqa: S101 - for the types
        tail = b""
        while data := reader.stdout.read(BYTES_PER_SEARCH):
            yield tail + data
            tail = data[-overlap:]
    # A log that another process rotated away is none.
    if reader.returncode != 0 and path.exists():
        raise InputError(f"file {path} cannot be read, so what it holds is unknown")


def search_free_space(engine: Engine, identity: Identity) -> Searched:
    """Look through the raw bytes of an SQLite database, for what deleted rows left behind.

    A text that a row of somebody else still holds is no trace; such texts are counted as shared.
    PostgreSQL's files cannot be read from here; the result says so.
    """
    if engine.dialect.name != "sqlite":
        return Searched("PostgreSQL's own files", "not searched: only the server can read them")
    base = Path(str(engine.url.database))
    files = [path for path in (base, Path(f"{base}-wal")) if path.exists()]
    matcher = Matcher(identity.texts)
    size = 0
    seen: set[str] = set()
    for path in files:
        for chunk in _chunks(path, matcher):
            size += len(chunk)
            seen |= matcher.list_found(chunk, delimited=False)
    held = _held_by_rows(base, seen) if seen else set()
    searched = Searched("bytes of the database file", f"{size / 1e6:,.1f} MB")
    searched.shared = len(held)
    for _ in seen - held:
        searched.add("free space of the file")
    return searched


def _held_by_rows(base: Path, texts: set[str]) -> set[str]:
    """Which of some texts stand in a row of any table."""
    held: set[str] = set()
    matcher = Matcher(texts)
    with sqlite3.connect(f"file:{base}?mode=ro", uri=True) as database:
        tables = [
            row[0]
            for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        for table in tables:
            cursor = database.execute(f'SELECT * FROM "{table}"')  # noqa: S608 - names the database told
            while rows := cursor.fetchmany(ROWS_PER_SEARCH):
                blob = "\0".join(
                    str(value) for row in rows for value in row if isinstance(value, str)
                )
                held |= matcher.list_found(blob.encode(), delimited=False)
    return held


def total(searched: Iterable[Searched]) -> int:
    """Traces at all places."""
    return sum(one.found for one in searched)


def as_json(searched: Iterable[Searched]) -> list[dict[str, Any]]:
    """Plain JSON values, a place each."""
    return [vars(one) for one in searched]
