"""The repository of patterns: current documents, their history, outcomes and learned weights.

Every read takes the client first: there is no way to ask for patterns across tenants except the
two overviews that carry no document (`outcomes`, `latest_fingerprints`).
"""

import hashlib
import json
import random
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import polars as pl
from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Select,
    String,
    Table,
    and_,
    bindparam,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from conversion_assets.domain.errors import InputError, NotFoundError
from conversion_assets.domain.facts import LearningFacts
from conversion_assets.domain.patterns import (
    DOCUMENTS,
    AnyPattern,
    Claim,
    Outcome,
    StoredPattern,
    WhoPattern,
)
from conversion_assets.domain.terms import OutcomeKind, PatternType
from conversion_assets.storage.database import (
    reported_connection_errors,
    write_transaction,
)
from conversion_assets.storage.document_text import canonical_json
from conversion_assets.storage.forecasts import ForecastChanges, store_forecasts
from conversion_assets.storage.tables import (
    clients,
    conversion_pattern_history,
    conversion_patterns,
    learning_facts,
    pattern_outcomes,
    pool_members,
)

_Insert = postgresql.Insert | sqlite.Insert

ATTEMPTS = 4
"""Tries of one client's transaction: with the pauses below about 3 s, longer than a restart of a
connection pooler and shorter than anyone's patience with a real outage."""

CLIENTS_PER_TRANSACTION = 50
"""Clients stored together: statements for many rows at a time, and one wait for the disk. Another
writer of SQLite waits a fifth of a second for them, a killed process loses at most so many."""

CHECKPOINT_PAGES = 16_384
"""Pages, 64 MB, that SQLite's write-ahead log may hold before they are moved to the file, which
waits for the disk twice. Its own 1,000 would be moved after every transaction here."""

FIRST_PAUSE_S = 0.4
"""Pause before the second try; it doubles, and varies by half so that rivals do not meet again."""


def parse_document(pattern_type: PatternType | str, text: str) -> AnyPattern:
    """Document of a stored text.

    Example:
        parse_document("who", canonical_json(document)) == document
    """
    return DOCUMENTS[PatternType(pattern_type)].model_validate_json(text)


@dataclass(frozen=True)
class ClientResults:
    """What one refresh came to for one client.

    Attributes:
        client_id: The client.
        documents: The documents to store, by type; those found or none_found.
        outcomes: One per pattern type that was computed, failed ones too.
        input_fingerprint: What the documents were computed from.
        forecasts: What its claims forecast, and earlier forecasts graded.
        facts: What the refresh knows of it besides; None leaves what is stored.
    """

    client_id: str
    documents: Mapping[PatternType, AnyPattern]
    outcomes: Sequence[Outcome]
    input_fingerprint: str
    forecasts: ForecastChanges = field(default_factory=ForecastChanges)
    facts: LearningFacts | None = None


@dataclass(frozen=True)
class Refresh:
    """What all clients of one refresh share.

    Attributes:
        as_of: Nothing later than this was known to the computation.
        computed_at: When it was computed.
        run_id: The run that computed it.
        code_version: What it was computed by.
        validity_days: A pattern is valid this long after `as_of`.
        pool_id: Whose counts were lent in it, see `PatternRepository.store_pool`.
        settings: Thresholds it was computed with, JSON; None leaves them unsaid.
    """

    as_of: datetime
    computed_at: datetime
    run_id: str
    code_version: str
    validity_days: int
    pool_id: str | None = None
    settings: str | None = None


@dataclass(frozen=True)
class StoreReport:
    """What became of each client.

    Attributes:
        stored: Clients whose transaction was committed.
        errors: Client to error, one line each.
    """

    stored: list[str]
    errors: dict[str, str]


class WeightsInputs(NamedTuple):
    """What the weights in force depend on, unchecked; None where nothing is stored."""

    who_document: dict[str, Any] | None
    valid_until: datetime | None
    client_weights: dict[str, Any] | None


class PatternRepository:
    """Stores and serves what was learned. Tenants are isolated: reads take one client."""

    def __init__(
        self,
        engine: Engine,
        *,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._sleep = sleep
        self._jitter = jitter

    # -- writing -------------------------------------------------------------------------------

    def store_client(
        self,
        client_id: str,
        documents: Mapping[PatternType, AnyPattern],
        outcomes: Sequence[Outcome],
        *,
        as_of: datetime,
        computed_at: datetime,
        run_id: str,
        code_version: str,
        input_fingerprint: str,
        validity_days: int,
    ) -> None:
        """Store one client's results in one transaction; see `store_clients`.

        Raises:
            NotFoundError: there is no such client.
            InputError: a document is another client's, or the database refuses a value.
            UnreachableError: the database could not be reached, after several tries.
        """
        results = ClientResults(client_id, documents, outcomes, input_fingerprint)
        refresh = Refresh(as_of, computed_at, run_id, code_version, validity_days)
        with reported_connection_errors(self._engine):
            self._store_patiently(_prepare([results], refresh), refresh)

    def store_clients(self, batch: Iterable[ClientResults], refresh: Refresh) -> StoreReport:
        """Store many clients, each whole or not at all; one's trouble is not another's.

        Some dozens share a transaction. Where one of them cannot be stored, each of these gets a
        transaction of its own.

        Per client and stored type: the current pattern is replaced unless it is newer, the
        history gets a row, the outcome of every type is recorded unless a later refresh did, and a
        WHO document that becomes current moves the client's sample count and, where it recommends
        learned weights, those. The same computation again (`as_of`, code version, fingerprint)
        changes nothing.

        Returns:
            Clients stored, and the error of each that was not. A lost connection or a lock is
            tried again; then it counts as an error of that client.
        """
        report = StoreReport([], {})
        groups = _together(batch)
        is_served = self._engine.dialect.name != "sqlite"
        for rows in _prepare_ahead(groups, refresh) if is_served else _prepare_all(groups, refresh):
            self._store_group(rows, refresh, report)
        return report

    def _store_group(self, rows: "_Rows | _Refused", refresh: Refresh, report: StoreReport) -> None:
        """Store some clients together; where that fails, each by itself."""
        try:
            with reported_connection_errors(self._engine):
                self._store_patiently(rows, refresh)
        except (InputError, NotFoundError) as error:
            if len(rows.group) == 1:
                report.errors[rows.group[0].client_id] = str(error)
                return
            for results in rows.group:
                self._store_group(_prepare([results], refresh), refresh, report)
        else:
            report.stored.extend(results.client_id for results in rows.group)

    def _store_patiently(self, rows: "_Rows | _Refused", refresh: Refresh) -> None:
        if isinstance(rows, _Refused):
            raise rows.error
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with write_transaction(self._engine) as connection:
                    _store(connection, rows, refresh)
            except DBAPIError as error:
                if attempt == ATTEMPTS or not _is_transient(error):
                    raise
                pause = FIRST_PAUSE_S * 2 ** (attempt - 1)
                self._sleep(pause * (0.5 + self._jitter()))
            else:
                return

    def store_pool(self, client_ids: Collection[str]) -> str | None:
        """Keep who lent to a refresh, and drop pools that no client leans on any more.

        Returns:
            Id of the pool: the same members have the same; None without any.
        """
        members = sorted(client_ids)
        pool_id = hashlib.sha256("\0".join(members).encode()).hexdigest()[:32]
        with reported_connection_errors(self._engine), write_transaction(self._engine) as writing:
            in_use = select(learning_facts.c.pool_id).where(learning_facts.c.pool_id.is_not(None))
            writing.execute(
                pool_members.delete().where(
                    pool_members.c.pool_id.not_in(in_use), pool_members.c.pool_id != pool_id
                )
            )
            known = select(clients.c.id).where(clients.c.id.in_(members))
            rows = [
                {"pool_id": pool_id, "client_id": client_id}
                for client_id in writing.execute(known).scalars()
            ]
            if rows:
                writing.execute(_append_statement(writing.dialect.name, pool_members), rows)
        return pool_id if members else None

    # -- reading -------------------------------------------------------------------------------

    def current(
        self, client_id: str, pattern_type: PatternType | None = None
    ) -> dict[PatternType, StoredPattern]:
        """The client's current documents, by type in the order who, what, when, how.

        Raises:
            NotFoundError: unknown client, or nothing (of that type) is stored.
        """
        table = conversion_patterns
        query = select(table).where(table.c.client_id == client_id)
        return self._documents(client_id, pattern_type, lambda c: c.execute(query).all(), "stored")

    def in_force(
        self, client_id: str, at: datetime, pattern_type: PatternType | None = None
    ) -> dict[PatternType, StoredPattern]:
        """The client's documents in force at a time: the newest of those valid then.

        Valid are those whose `as_of` is not later than that time, and whose `valid_until` is.

        Raises:
            NotFoundError: unknown client, or nothing (of that type) was in force.
            InputError: the time has no zone.
        """
        if at.tzinfo is None:
            raise InputError(f"time {at.isoformat()} has no zone; give it one, for example +00:00")

        def find(connection: Connection) -> list[Row[Any]]:
            found: dict[str, Row[Any]] = {}
            # The current row first: of several computations as of one moment it names the valid.
            for table in (conversion_patterns, conversion_pattern_history):
                for row in connection.execute(_known_at(table, client_id, at)):
                    best = found.get(row.pattern_type)
                    if best is None or row.as_of > best.as_of:
                        found[row.pattern_type] = row
            return list(found.values())

        return self._documents(client_id, pattern_type, find, f"in force at {at.isoformat()}")

    def _documents(
        self,
        client_id: str,
        pattern_type: PatternType | None,
        find: Callable[[Connection], Sequence[Row[Any]]],
        what: str,
    ) -> dict[PatternType, StoredPattern]:
        with reported_connection_errors(self._engine), self._engine.connect() as connection:
            rows = {PatternType(row.pattern_type): row for row in find(connection)}
            chosen = [t for t in PatternType if t in rows and pattern_type in (None, t)]
            if not chosen:
                _require_client(connection, client_id)
        if not chosen:
            kind = f"{pattern_type} pattern" if pattern_type else "pattern"
            raise NotFoundError(f"client {client_id!r} has no {kind} {what}")
        return {t: _stored_pattern(rows[t]) for t in chosen}

    def outcomes(self, client_ids: Sequence[str] | None = None) -> pl.DataFrame:
        """Last outcome per client and type, sorted by both.

        Columns: client_id, pattern_type, outcome, reason, error, as_of, computed_at,
        code_version, input_fingerprint, run_id.
        """
        return self._overview(pattern_outcomes, list(pattern_outcomes.c), client_ids)

    def latest_fingerprints(self, client_ids: Sequence[str] | None = None) -> pl.DataFrame:
        """What each client and type was last computed from without failing, sorted by both.

        Types with too little data are in it: they need no new computation either while neither
        rows nor code change. Columns: client_id, pattern_type, as_of, code_version,
        input_fingerprint.
        """
        names = ("client_id", "pattern_type", "as_of", "code_version", "input_fingerprint")
        table = pattern_outcomes
        columns = [table.c[name] for name in names]
        return self._overview(
            table, columns, client_ids, table.c.outcome != str(OutcomeKind.FAILED)
        )

    def claims_before(
        self, client_ids: Sequence[str], as_of: datetime
    ) -> dict[str, list[tuple[PatternType, Claim]]]:
        """What each client's last documents before a moment called an act, for the next refresh.

        Only documents as of an earlier moment count, so the same refresh again reads the same.

        Returns:
            Claims by client; an empty list for a client that claimed nothing, no entry for one
            without any earlier document.
        """
        history = conversion_pattern_history
        is_sqlite = self._engine.dialect.name == "sqlite"
        claims = (
            func.json_extract(history.c.patterns, "$.claims", type_=String)
            if is_sqlite
            else func.jsonb_extract_path_text(history.c.patterns, "claims", type_=String)
        )
        place = func.row_number().over(
            partition_by=(history.c.client_id, history.c.pattern_type),
            order_by=(
                history.c.as_of.desc(),
                history.c.computed_at.desc(),
                history.c.input_fingerprint,
            ),
        )
        ranked = (
            select(
                history.c.client_id,
                history.c.pattern_type,
                claims.label("claims"),
                place.label("place"),
            )
            .where(history.c.as_of < as_of)
            .subquery()
        )
        query = select(ranked.c.client_id, ranked.c.pattern_type, ranked.c.claims).where(
            ranked.c.place == 1
        )
        with reported_connection_errors(self._engine), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        wanted = set(client_ids)
        found: dict[str, list[tuple[PatternType, Claim]]] = {}
        for client_id, pattern_type, text in rows:
            if client_id in wanted:
                found.setdefault(client_id, []).extend(
                    (PatternType(pattern_type), Claim.model_validate(one))
                    for one in json.loads(text or "[]")
                )
        return found

    def _overview(
        self, table: Table, columns: list[Any], client_ids: Sequence[str] | None, *where: Any
    ) -> pl.DataFrame:
        schema = {
            column.name: pl.Datetime("us", "UTC")
            if column.name.endswith(("_at", "_of"))
            else pl.String()
            for column in columns
        }
        with reported_connection_errors(self._engine), self._engine.connect() as connection:
            rows = [tuple(row) for row in connection.execute(select(*columns).where(*where))]
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        if client_ids is not None:
            frame = frame.filter(pl.col("client_id").is_in(list(client_ids)))
        return frame.sort("client_id", "pattern_type")

    def load_weights_inputs(self, client_id: str) -> WeightsInputs:
        """What the weights in force depend on, in one query by primary keys.

        `scoring.weights.weights_in_force` decides from it.

        Raises:
            NotFoundError: unknown client.
        """
        who = conversion_patterns
        query = (
            select(who.c.patterns, who.c.valid_until, clients.c.als_learned_weights)
            .select_from(clients)
            .outerjoin(
                who, and_(who.c.client_id == clients.c.id, who.c.pattern_type == PatternType.WHO)
            )
            .where(clients.c.id == client_id)
        )
        with reported_connection_errors(self._engine), self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise _unknown_client(client_id)
        return WeightsInputs(
            _object(row.patterns), row.valid_until, _object(row.als_learned_weights)
        )


def _together(batch: Iterable[ClientResults]) -> Iterator[list[ClientResults]]:
    """Some clients at a time, none of them twice."""
    group: dict[str, ClientResults] = {}
    for results in batch:
        if len(group) == CLIENTS_PER_TRANSACTION or results.client_id in group:
            yield list(group.values())
            group = {}
        group[results.client_id] = results
    if group:
        yield list(group.values())


@dataclass(frozen=True)
class _Rows:
    """What is written for some clients, ready for their transaction."""

    group: Sequence[ClientResults]
    documents: list[dict[str, Any]]
    outcomes: list[dict[str, Any]]
    facts: list[dict[str, Any]]


@dataclass(frozen=True)
class _Refused:
    """Clients of whom one has a document that cannot be stored."""

    group: Sequence[ClientResults]
    error: InputError


def _prepare(group: Sequence[ClientResults], refresh: Refresh) -> _Rows | _Refused:
    try:
        return _Rows(
            group,
            [row for results in group for row in _document_rows(results, refresh)],
            [row for results in group for row in _outcome_rows(results, refresh)],
            [_facts_row(r.client_id, r.facts, refresh) for r in group if r.facts is not None],
        )
    except InputError as error:
        return _Refused(group, error)


def _prepare_all(
    groups: Iterator[list[ClientResults]], refresh: Refresh
) -> Iterator[_Rows | _Refused]:
    for group in groups:
        yield _prepare(group, refresh)


def _prepare_ahead(
    groups: Iterator[list[ClientResults]], refresh: Refresh
) -> Iterator[_Rows | _Refused]:
    """Make the text of documents while a server takes those of the group before.

    Not for SQLite: it works in this process, and two threads of it would only wait for each other.
    """
    with ThreadPoolExecutor(1) as preparing:
        before: Future[_Rows | _Refused] | None = None
        for group in groups:
            coming = preparing.submit(_prepare, group, refresh)
            if before is not None:
                yield before.result()
            before = coming
        if before is not None:
            yield before.result()


def _store(connection: Connection, rows: _Rows, refresh: Refresh) -> None:
    """Write some clients inside the caller's transaction."""
    dialect = connection.dialect.name
    if dialect == "sqlite":
        connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    # Two refreshes of one client take turns; on SQLite the transaction holds the only write lock.
    _lock_clients(connection, [results.client_id for results in rows.group])
    if rows.documents:
        # Before the documents are written: afterwards nobody could tell what they replaced.
        _store_weights(connection, rows.group, refresh)
        connection.execute(_append_statement(dialect, conversion_pattern_history), rows.documents)
        connection.execute(_upsert_statement(dialect, conversion_patterns, ()), rows.documents)
    if rows.outcomes:
        told = ("outcome", "reason", "error")
        connection.execute(_upsert_statement(dialect, pattern_outcomes, told), rows.outcomes)
    if rows.facts:
        connection.execute(_facts_statement(dialect), rows.facts)
    store_forecasts(
        connection,
        [results.forecasts for results in rows.group],
        code_version=refresh.code_version,
        run_id=refresh.run_id,
    )


def _made(results: ClientResults, refresh: Refresh) -> dict[str, Any]:
    return {
        "client_id": results.client_id,
        "as_of": refresh.as_of,
        "computed_at": refresh.computed_at,
        "run_id": refresh.run_id,
        "code_version": refresh.code_version,
        "input_fingerprint": results.input_fingerprint,
    }


def _document_rows(results: ClientResults, refresh: Refresh) -> Iterator[dict[str, Any]]:
    valid_until = refresh.as_of + timedelta(days=refresh.validity_days)
    for pattern_type, document in results.documents.items():
        _check_document(pattern_type, document, results.client_id, refresh)
        yield {
            **_made(results, refresh),
            "pattern_type": str(pattern_type),
            "patterns": canonical_json(document),
            "sample_size": document.sample_size,
            "confidence": document.confidence,
            "valid_until": valid_until,
            "settings": refresh.settings,
        }


def _outcome_rows(results: ClientResults, refresh: Refresh) -> Iterator[dict[str, Any]]:
    for outcome in results.outcomes:
        yield {
            **_made(results, refresh),
            "pattern_type": str(outcome.pattern_type),
            "outcome": str(outcome.outcome),
            "reason": outcome.reason,
            "error": outcome.error,
        }


def _facts_row(client_id: str, facts: LearningFacts, refresh: Refresh) -> dict[str, Any]:
    """The one row of a client, written unless a newer one is there."""
    return {
        "client_id": client_id,
        "as_of": refresh.as_of,
        "computed_at": refresh.computed_at,
        "pool_id": refresh.pool_id if facts.borrowing is not None else None,
        "facts": facts.model_dump_json(),
    }


@cache
def _facts_statement(dialect: str) -> _Insert:
    statement = _insert(dialect, learning_facts)
    given = statement.excluded
    names = ("as_of", "computed_at", "pool_id", "facts")
    return statement.on_conflict_do_update(
        index_elements=["client_id"],
        set_={name: given[name] for name in names},
        where=given.as_of >= learning_facts.c.as_of,
    )


def _check_document(
    pattern_type: PatternType, document: AnyPattern, client_id: str, refresh: Refresh
) -> None:
    found = (document.client_id, document.type, document.as_of)
    wanted = (client_id, pattern_type, refresh.as_of)
    if found != wanted:
        raise InputError(
            f"document to store for client {wanted[0]!r}, {wanted[1]}, {wanted[2].isoformat()}"
            f" says client {found[0]!r}, {found[1]}, {found[2].isoformat()}"
        )


# Building a statement takes longer than running it; there are few, each for two databases.
@cache
def _upsert_statement(dialect: str, table: Table, told: tuple[str, ...]) -> _Insert:
    """Write the one row of (client, type) unless a newer or the same one is there.

    The same: as of the same moment, by the same code from the same rows, and equal in the columns
    `told` besides.
    """
    statement = _insert(dialect, table)
    given = statement.excluded
    names = [name for name in table.c.keys() if name not in ("client_id", "pattern_type")]  # noqa: SIM118 - columns, not keys, iterate
    differs = or_(
        *(
            table.c[name].is_distinct_from(given[name])
            for name in ("code_version", "input_fingerprint", *told)
        )
    )
    return statement.on_conflict_do_update(
        index_elements=["client_id", "pattern_type"],
        set_={name: given[name] for name in names},
        where=or_(given.as_of > table.c.as_of, and_(given.as_of == table.c.as_of, differs)),
    )


@cache
def _append_statement(dialect: str, table: Table) -> _Insert:
    return _insert(dialect, table).on_conflict_do_nothing()


def _insert(dialect: str, table: Table) -> _Insert:
    # Both have the same ON CONFLICT; SQLAlchemy keeps one class for each.
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def _store_weights(
    connection: Connection, group: Sequence[ClientResults], refresh: Refresh
) -> None:
    """Sample count and learned weights of the clients whose WHO document becomes current."""
    documents = {
        results.client_id: (results, document)
        for results in group
        if isinstance(document := results.documents.get(PatternType.WHO), WhoPattern)
    }
    stored = _stored_who(connection, list(documents))
    counted: list[dict[str, Any]] = []
    weighed: list[dict[str, Any]] = []
    for client_id, (results, document) in documents.items():
        given = (refresh.as_of, refresh.code_version, results.input_fingerprint)
        if not _becomes_current(stored.get(client_id), given):
            continue
        row = {"of_client": client_id, "samples": document.sample_size}
        if document.score_evaluation.recommended:
            weights = document.recommended_weights.model_dump(mode="json")
            weighed.append({**row, "weights": json.dumps(weights, sort_keys=True)})
        else:
            counted.append(row)
    one = update(clients).where(clients.c.id == bindparam("of_client"))
    if counted:
        count = one.values(conversion_sample_count=bindparam("samples"))
        connection.execute(count, counted)
    if weighed:
        weigh = one.values(
            conversion_sample_count=bindparam("samples"),
            als_learned_weights=bindparam("weights"),
            als_weights_updated_at=refresh.computed_at,
        )
        connection.execute(weigh, weighed)


_Computation = tuple[datetime, str, str]
"""As of, code version and input fingerprint: what tells one computation from another."""


def _stored_who(connection: Connection, client_ids: list[str]) -> dict[str, _Computation]:
    table = conversion_patterns
    query = select(
        table.c.client_id, table.c.as_of, table.c.code_version, table.c.input_fingerprint
    ).where(table.c.pattern_type == str(PatternType.WHO), table.c.client_id.in_(client_ids))
    return {row.client_id: (row[1], row[2], row[3]) for row in connection.execute(query)}


def _becomes_current(stored: _Computation | None, given: _Computation) -> bool:
    """Whether `_upsert_statement` will write a document; its client is locked since we looked."""
    return stored is None or given[0] > stored[0] or (given[0] == stored[0] and given != stored)


def _is_transient(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        return "locked" in str(error.orig) or "busy" in str(error.orig)
    # Lost connections, deadlocks, serialisation failures, a server that restarts.
    return isinstance(error, OperationalError | InterfaceError)


def _stored_pattern(row: Row[Any]) -> StoredPattern:
    return StoredPattern(
        document=parse_document(row.pattern_type, row.patterns),
        computed_at=row.computed_at,
        valid_until=row.valid_until,
        code_version=row.code_version,
        input_fingerprint=row.input_fingerprint,
        settings=row.settings,
    )


def _object(text: str | None) -> dict[str, Any] | None:
    value = json.loads(text) if text is not None else None
    return value if isinstance(value, dict) else None


def _unknown_client(client_id: str) -> NotFoundError:
    return NotFoundError(f"there is no client {client_id!r}")


def _require_client(connection: Connection, client_id: str) -> None:
    query = select(clients.c.id).where(clients.c.id == client_id)
    if connection.execute(query).first() is None:
        raise _unknown_client(client_id)


def _lock_clients(connection: Connection, client_ids: list[str]) -> None:
    """Lock the rows of some clients, in one order for everybody."""
    query = select(clients.c.id).where(clients.c.id.in_(client_ids)).order_by(clients.c.id)
    found = set(connection.execute(query.with_for_update()).scalars())
    for client_id in client_ids:
        if client_id not in found:
            raise _unknown_client(client_id)


def _known_at(table: Table, client_id: str, at: datetime) -> Select[Any]:
    return (
        select(table)
        .where(table.c.client_id == client_id, table.c.as_of <= at, table.c.valid_until > at)
        .order_by(table.c.as_of.desc(), table.c.computed_at.desc())
    )
