"""Erasure in the system of record: who was erased, told by hashes, and the rows that go.

A lead that was erased must not come back with the next file of an import. What is remembered of it
is a keyed hash of client and lead id: it answers "was this id erased?" and nothing else. The salt
lies in the same table, so whoever holds the database and guesses an id can check the guess; ids
that are e-mail addresses are therefore not hidden by it.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, Table, delete, func, insert, select, text, update

from conversion_assets.domain.errors import ConflictError, NotFoundError
from conversion_assets.storage.database import (
    reported_connection_errors,
    write_transaction,
)
from conversion_assets.storage.tables import (
    alert_outbox,
    clients,
    erasures,
    leads,
    metadata,
    row_deletions,
)

ERASURE_LOCK = 7_263_549_013
"""Key of the PostgreSQL advisory lock: an import shares it, an erasure holds it alone. Without it
an import that had looked before the erasure could store afterwards. Any number not used yet."""

LEARNED_TABLES = (
    "conversion_patterns",
    "conversion_pattern_history",
    "pattern_outcomes",
    "pattern_forecasts",
    "learning_facts",
)
"""Aggregates of a client, which a lead's erasure leaves unless asked to take them too."""

_KEYS_PER_STATEMENT = 500
"""Well below the number of parameters either database takes."""


@dataclass(frozen=True)
class Erasure:
    """Whom to erase.

    Attributes:
        client_id: The client.
        lead_ids: Some of its leads, sorted; None for the client with everything it has.
    """

    client_id: str
    lead_ids: tuple[str, ...] | None = None

    @classmethod
    def of(cls, client_id: str, lead_ids: Iterable[str] = ()) -> "Erasure":
        """Leads of a client, or without any the whole client."""
        return cls(client_id, tuple(sorted(set(lead_ids))) or None)


def hash_id(salt: str, *parts: str) -> str:
    """Keyed hash of a client id, or of a client id and a lead id.

    Example:
        >>> hash_id("s", "acme", "lead-1") == hash_id("s", "acme", "lead-1")
        True
        >>> hash_id("s", "acme", "lead-1") == hash_id("s", "other", "lead-1")
        False
    """
    return hmac.new(salt.encode(), "\0".join(parts).encode(), hashlib.sha256).hexdigest()[:40]


def hold_off_imports(connection: Connection) -> None:
    """Wait until no import is at work, and let none begin before this transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ERASURE_LOCK})


def hold_off_erasures(connection: Connection) -> None:
    """For an import: what it finds about erasures stays true until its transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": ERASURE_LOCK})


def record_erasure(engine: Engine, erasure: Erasure, now: datetime) -> None:
    """Remember that an erasure was asked for; from here on imports refuse its ids.

    The same request again opens its rows again: an erasure that ran before is checked anew.

    Raises:
        UnreachableError: the database cannot be reached.
    """
    with reported_connection_errors(engine), write_transaction(engine) as connection:
        hold_off_imports(connection)
        salt = connection.execute(select(erasures.c.salt).limit(1)).scalar() or secrets.token_hex(
            16
        )
        client_hash = hash_id(salt, erasure.client_id)
        rows: list[dict[str, Any]] = [
            {"salt": salt, "client_hash": client_hash, "lead_hash": lead, "asked_at": now}
            for _, lead in _hashes(salt, erasure)
        ]
        known = set(_standing(connection, client_hash))
        connection.execute(
            update(erasures)
            .where(erasures.c.client_hash == client_hash, _covers(erasure, rows))
            .where(erasures.c.lifted_at.is_(None))
            .values(done_at=None)
        )
        new = [row for row in rows if row["lead_hash"] not in known]
        if new:
            connection.execute(insert(erasures), new)


def finish_erasure(engine: Engine, erasure: Erasure, now: datetime) -> None:
    """Remember that nothing of an erasure is left to do."""
    with reported_connection_errors(engine), write_transaction(engine) as connection:
        salt = connection.execute(select(erasures.c.salt).limit(1)).scalar_one()
        rows = [{"lead_hash": lead} for _, lead in _hashes(salt, erasure)]
        connection.execute(
            update(erasures)
            .where(erasures.c.client_hash == hash_id(salt, erasure.client_id))
            .where(_covers(erasure, rows), erasures.c.lifted_at.is_(None))
            .values(done_at=now)
        )


def _hashes(salt: str, erasure: Erasure) -> list[tuple[str, str | None]]:
    client = hash_id(salt, erasure.client_id)
    if erasure.lead_ids is None:
        return [(client, None)]
    return [(client, hash_id(salt, erasure.client_id, lead)) for lead in erasure.lead_ids]


def _standing(connection: Connection, client_hash: str) -> list[str | None]:
    query = select(erasures.c.lead_hash).where(
        erasures.c.client_hash == client_hash, erasures.c.lifted_at.is_(None)
    )
    return list(connection.execute(query).scalars())


def _covers(erasure: Erasure, rows: list[dict[str, Any]]) -> Any:
    # The whole client closes what was open of its leads too.
    if erasure.lead_ids is None:
        return text("1 = 1")
    return erasures.c.lead_hash.in_([row["lead_hash"] for row in rows])


def read_erasures(engine: Engine) -> pl.DataFrame:
    """Erasures in force: salt, client_hash, lead_hash, asked_at, done_at; none that was lifted.

    Raises:
        UnreachableError: the database cannot be reached.
    """
    with reported_connection_errors(engine), engine.connect() as connection:
        return _read(connection)


_TIME = pl.Datetime("us", "UTC")
_ERASURES: dict[str, pl.DataType] = {
    "salt": pl.String(),
    "client_hash": pl.String(),
    "lead_hash": pl.String(),
    "asked_at": _TIME,
    "done_at": _TIME,
}


def _read(connection: Connection) -> pl.DataFrame:
    query = select(*(erasures.c[name] for name in _ERASURES)).where(erasures.c.lifted_at.is_(None))
    rows = [tuple(row) for row in connection.execute(query)]
    return pl.DataFrame(rows, schema=_ERASURES, orient="row")


def find_erased(connection: Connection, keys: pl.DataFrame) -> pl.DataFrame:
    """Those of the given leads that were erased, alone or with their client.

    Args:
        connection: In the transaction that will write.
        keys: client_id and lead_id, both text; lead_id may be null for a client itself.

    Returns:
        Distinct rows of `keys`.
    """
    return match_erased(_read(connection), keys)


def match_erased(standing: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """Those of the given leads that a frame of erasures covers; see `find_erased`."""
    pairs = keys.select("client_id", "lead_id").unique()
    if standing.is_empty() or pairs.is_empty():
        return pairs.clear()
    salt = str(standing["salt"][0])
    ids = pairs["client_id"].drop_nulls().unique().to_list()
    hashed = {client_id: hash_id(salt, client_id) for client_id in ids}
    whole = set(standing.filter(pl.col("lead_hash").is_null())["client_hash"])
    some = set(standing["client_hash"])
    gone = [client_id for client_id, value in hashed.items() if value in whole]
    touched = [client_id for client_id, value in hashed.items() if value in some - whole]
    # Only leads of clients that had one erased are hashed, about a million a second.
    suspects = pairs.filter(pl.col("client_id").is_in(touched) & pl.col("lead_id").is_not_null())
    erased = set(standing["lead_hash"].drop_nulls())
    is_erased = [hash_id(salt, client, lead) in erased for client, lead in suspects.rows()]
    return pl.concat(
        [
            pairs.filter(pl.col("client_id").is_in(gone)),
            suspects.filter(pl.Series(is_erased, dtype=pl.Boolean)),
        ]
    )


def lift_erasures(connection: Connection, keys: pl.DataFrame, now: datetime) -> None:
    """Take back the erasure of leads, because an import was told to store them again."""
    found = find_erased(connection, keys)
    if found.is_empty():
        return
    salt = connection.execute(select(erasures.c.salt).limit(1)).scalar_one()
    of_clients = [hash_id(salt, client) for client in found["client_id"].unique()]
    of_leads = [hash_id(salt, client, lead) for client, lead in found.rows() if lead is not None]
    columns = ((erasures.c.lead_hash, of_leads), (erasures.c.client_hash, of_clients))
    for column, hashes in columns:
        for start in range(0, len(hashes), _KEYS_PER_STATEMENT):
            statement = update(erasures).where(
                column.in_(hashes[start : start + _KEYS_PER_STATEMENT]),
                erasures.c.lifted_at.is_(None),
            )
            if column is erasures.c.client_hash:
                statement = statement.where(erasures.c.lead_hash.is_(None))
            connection.execute(statement.values(lifted_at=now))


def finish_open(engine: Engine, client_id: str, now: datetime) -> int:
    """Remember that nothing is left of a client's leads whose erasure was begun; returns them."""
    with reported_connection_errors(engine), write_transaction(engine) as connection:
        salt = connection.execute(select(erasures.c.salt).limit(1)).scalar()
        if salt is None:
            return 0
        done = connection.execute(
            update(erasures)
            .where(
                erasures.c.client_hash == hash_id(salt, client_id),
                erasures.c.lead_hash.is_not(None),
                erasures.c.done_at.is_(None),
                erasures.c.lifted_at.is_(None),
            )
            .values(done_at=now)
        )
    return done.rowcount


# -- rows --------------------------------------------------------------------------------------


def load_identities(engine: Engine, erasure: Erasure) -> pl.DataFrame:
    """What tells the leads apart from everybody else: what a proof must look for.

    Returns:
        lead_id, first_name, last_name, email, personal_email, phone, linkedin_url of those stored.
    """
    names = ("first_name", "last_name", "email", "personal_email", "phone", "linkedin_url")
    query = select(leads.c.id, *(leads.c[name] for name in names)).where(
        leads.c.client_id == erasure.client_id
    )
    schema = dict.fromkeys(("lead_id", *names), pl.String())
    with reported_connection_errors(engine), engine.connect() as connection:
        frame = pl.DataFrame(
            [tuple(row) for row in connection.execute(query)], schema=schema, orient="row"
        )
    if erasure.lead_ids is None:
        return frame
    return frame.filter(pl.col("lead_id").is_in(list(erasure.lead_ids)))


def require_known(engine: Engine, erasure: Erasure) -> None:
    """Refuse ids that were never here: a typing error must not look like an erasure.

    A client or lead whose erasure was asked for before is known.

    Raises:
        NotFoundError: there is no such client or lead.
    """
    with reported_connection_errors(engine), engine.connect() as connection:
        keys = pl.DataFrame(
            {"lead_id": list(erasure.lead_ids or [None])}, schema={"lead_id": pl.String}
        ).with_columns(client_id=pl.lit(erasure.client_id))
        before = set(match_erased(_read(connection), keys)["lead_id"])
        if None in before:
            return
        is_there = connection.execute(
            select(clients.c.id).where(clients.c.id == erasure.client_id)
        ).first()
    stored = set(load_identities(engine, erasure)["lead_id"])
    unknown = [lead for lead in erasure.lead_ids or () if lead not in stored | before]
    if is_there is None and (erasure.lead_ids is None or unknown):
        raise NotFoundError(f"there is no client {erasure.client_id!r}")
    if unknown:
        raise NotFoundError(f"client {erasure.client_id!r} has no lead {unknown[0]!r}")


def count_footprint(engine: Engine, erasure: Erasure, *, learned: bool) -> dict[str, int]:
    """Rows by table that an erasure would delete; tables without any are left out.

    Args:
        engine: System of record.
        erasure: Whom.
        learned: Also the client's patterns, history, outcomes and forecasts.
    """
    counts: dict[str, int] = {}
    with reported_connection_errors(engine), engine.connect() as connection:
        for table in _tables_of(erasure, learned=learned):
            query = select(func.count()).select_from(table)
            counts[table.name] = sum(
                connection.execute(query.where(condition)).scalar_one()
                for condition in _conditions(table, erasure)
            )
    return {name: rows for name, rows in counts.items() if rows}


def delete_rows(engine: Engine, erasure: Erasure, *, learned: bool) -> dict[str, int]:
    """Delete every row of the client or leads, in one transaction; returns rows by table.

    Deleted bytes are overwritten where the database can do that (SQLite's secure_delete).

    Raises:
        UnreachableError: the database cannot be reached.
    """
    counts: dict[str, int] = {}
    with reported_connection_errors(engine), write_transaction(engine) as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("PRAGMA secure_delete = ON"))
        hold_off_imports(connection)
        _open_history(connection, erasure.client_id)
        activities = _list_activities(connection, erasure)
        for table in _tables_of(erasure, learned=learned):
            for condition in _conditions(table, erasure):
                done = connection.execute(delete(table).where(condition))
                counts[table.name] = counts.get(table.name, 0) + done.rowcount
        _forget_activities(connection, erasure, activities)
        if erasure.lead_ids is None:
            _redact_digests(connection, erasure.client_id)
        elif learned:
            # Learned weights are an aggregate too; the next refresh learns them anew.
            connection.execute(
                update(clients)
                .where(clients.c.id == erasure.client_id)
                .values(als_learned_weights=None, als_weights_updated_at=None)
            )
        _open_history(connection, None)
    return {name: rows for name, rows in counts.items() if rows}


def _redact_digests(connection: Connection, client_id: str) -> None:
    """Take a client's lines out of messages about many clients."""
    table = alert_outbox
    query = select(table.c.id, table.c.payload).where(table.c.client_id.is_(None))
    for row_id, payload in connection.execute(query).all():
        plain = json.loads(payload)
        lines = plain.get("lines") or []
        kept = [line for line in lines if line.get("client_id") != client_id]
        if len(kept) == len(lines):
            continue
        statement = update(table).where(table.c.id == row_id)
        text_of = json.dumps({**plain, "lines": kept}, ensure_ascii=False)
        connection.execute(statement.values(payload=text_of))


def _open_history(connection: Connection, client_id: str | None) -> None:
    first = select(func.min(erasures.c.id)).scalar_subquery()
    connection.execute(
        update(erasures).where(erasures.c.id == first).values(open_client_id=client_id)
    )


def forget_deletions(engine: Engine, erasure: Erasure) -> int:
    """Remove the ids that change tracking noted when rows were deleted; returns how many.

    The columnar store must have dropped the rows before: its refresh learns of deletions from
    these notes. Those about a lead's activities went with the activities.
    """
    table = row_deletions
    with reported_connection_errors(engine), write_transaction(engine) as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("PRAGMA secure_delete = ON"))
        own = table.c.client_id == erasure.client_id
        parts: list[Any] = [own]
        if erasure.lead_ids is not None:
            is_lead = table.c.table_name == "leads"
            parts = [own & is_lead & table.c.id.in_(part) for part in _parts(erasure.lead_ids)]
        return sum(connection.execute(delete(table).where(part)).rowcount for part in parts)


def _forget_activities(connection: Connection, erasure: Erasure, ids: list[str]) -> None:
    """Remove the notes about a lead's activities: the one about the lead tells enough."""
    table = row_deletions
    for part in _parts(tuple(ids)):
        connection.execute(
            delete(table).where(
                table.c.client_id == erasure.client_id,
                table.c.table_name == "activities",
                table.c.id.in_(part),
            )
        )


def _list_activities(connection: Connection, erasure: Erasure) -> list[str]:
    table = metadata.tables["activities"]
    if erasure.lead_ids is None:
        return []
    return [
        activity
        for condition in _conditions(table, erasure)
        for activity in connection.execute(select(table.c.id).where(condition)).scalars()
    ]


def _tables_of(erasure: Erasure, *, learned: bool) -> list[Table]:
    """Tables with rows of the client or leads, children before their parents."""
    found = []
    for table in reversed(metadata.sorted_tables):
        if table.name == "row_deletions":
            continue
        of_client = table is clients or "client_id" in table.c
        of_leads = table is leads or ("lead_id" in table.c and "client_id" in table.c)
        if (erasure.lead_ids is None and of_client) or (
            erasure.lead_ids is not None
            and (of_leads or (learned and table.name in LEARNED_TABLES))
        ):
            found.append(table)
    return found


def _conditions(table: Table, erasure: Erasure) -> list[Any]:
    """Conditions that together select the rows; several where a list of ids is too long for one."""
    own = (table.c.id if table is clients else table.c.client_id) == erasure.client_id
    if erasure.lead_ids is None or table.name in LEARNED_TABLES:
        return [own]
    column = table.c.id if table is leads else table.c.lead_id
    return [own & column.in_(part) for part in _parts(erasure.lead_ids)]


def _parts(ids: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [
        ids[start : start + _KEYS_PER_STATEMENT]
        for start in range(0, len(ids), _KEYS_PER_STATEMENT)
    ]


def scrub_database(engine: Engine) -> str:
    """Give up the bytes of deleted rows, and say how far that goes.

    SQLite: the file is rewritten without free pages and the write-ahead log emptied. PostgreSQL:
    the tables are vacuumed; the space is overwritten as it is used again.

    Raises:
        ConflictError: another process holds SQLite's log open; nothing is lost, try again.
        UnreachableError: the database cannot be reached or is locked.
    """
    with (
        reported_connection_errors(engine),
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        if engine.dialect.name == "postgresql":
            for table in metadata.sorted_tables:
                connection.exec_driver_sql(f'VACUUM "{table.name}"')
            return "vacuumed; freed space is overwritten as PostgreSQL uses it again"
        driver: Any = connection.connection.driver_connection
        driver.execute("VACUUM")
        busy, _, _ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise ConflictError(
                "another process holds the database's log open; let it end and run the same"
                " command again"
            )
    return "file rewritten without free pages, log emptied"


def summarize_counts(counts: Mapping[str, int]) -> str:
    """Rows by table in a few words.

    Example:
        >>> summarize_counts({"leads": 1, "activities": 12})
        'leads 1, activities 12'
    """
    return ", ".join(f"{name} {rows:,}" for name, rows in counts.items()) or "none"
