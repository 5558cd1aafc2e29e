"""Health in the system of record: what the rules look at, and the findings with their messages.

A finding and the message about it are written in one transaction: there is no finding that nobody
will hear of, and no message about something that was rolled back.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, Row, Text, and_, case, cast, func, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from conversion_assets.domain.alerts import AlertKind, AlertLine, AlertMessage, compose_messages
from conversion_assets.domain.config import HealthConfig
from conversion_assets.domain.errors import InputError, NotFoundError
from conversion_assets.domain.facts import LearningFacts
from conversion_assets.domain.health import (
    CLIENT_SCHEMA,
    DRIFT_SCHEMA,
    FACTS_SCHEMA,
    OUTCOME_SCHEMA,
    PATTERN_SCHEMA,
    HealthFinding,
    HealthInputs,
)
from conversion_assets.domain.patterns import DOCUMENTS, WhoPattern
from conversion_assets.domain.terms import (
    BOOKING_ACTION,
    DEFECTS,
    SCORE_COMPONENTS,
    LeadStatus,
    PatternType,
    Severity,
)
from conversion_assets.storage.database import reported_connection_errors, write_transaction
from conversion_assets.storage.sources import open_snapshot
from conversion_assets.storage.tables import (
    UtcDateTime,
    alert_outbox,
    clients,
    conversion_patterns,
    health_findings,
    heartbeats,
    learning_facts,
    pattern_outcomes,
    pool_members,
)

RECORDING_LOCK = 7_263_549_012
"""Key of the PostgreSQL advisory lock that lets one process record findings at a time, so that two
checks at once do not both open the same finding; any fixed number but the migrations' one."""

_IDS_PER_STATEMENT = 500
"""Well below the number of parameters either database takes."""

_NO_LONGER_CHECKED = "no longer checked, because the client is no longer active"


@dataclass(frozen=True)
class HealthSubjects:
    """Whom a check is about.

    Attributes:
        inputs: What the rules look at.
        departed: Clients that are no longer active but have open findings: these are closed.
    """

    inputs: HealthInputs
    departed: list[str]


def load_health_subjects(
    engine: Engine, client_ids: Collection[str] | None = None
) -> HealthSubjects:
    """Read what the rules look at, for the given clients or all active ones.

    Raises:
        NotFoundError: a given client does not exist.
        InputError: the database cannot be read.
    """
    with reported_connection_errors(engine):
        with open_snapshot(engine) as snapshot:
            active = set(snapshot.active_client_ids())
        with engine.connect() as connection, connection.begin():
            wanted = active if client_ids is None else _known(connection, client_ids)
            departed = [] if client_ids is not None else _with_findings_beyond(connection, active)
            inputs = HealthInputs(
                clients=_load_clients(connection, wanted, active),
                patterns=_load_patterns(connection, wanted),
                outcomes=_load_outcomes(connection, wanted),
                **_load_facts(connection, wanted),
            )
    return HealthSubjects(inputs, departed)


def _known(connection: Connection, client_ids: Collection[str]) -> set[str]:
    known = set(connection.execute(select(clients.c.id)).scalars())
    for client_id in client_ids:
        if client_id not in known:
            raise NotFoundError(f"there is no client {client_id!r}")
    return set(client_ids)


def _with_findings_beyond(connection: Connection, active: set[str]) -> list[str]:
    query = select(health_findings.c.client_id).where(health_findings.c.resolved_at.is_(None))
    return sorted(set(connection.execute(query.distinct()).scalars()) - active)


# A lead counts once, however it is known to have converted.
_CONVERSIONS = f"""
    SELECT client_id, count(*) FROM (
        SELECT client_id, id FROM leads WHERE deleted_at IS NULL
            AND status = '{LeadStatus.CONVERTED}' AND converted_at IS NOT NULL
        UNION SELECT a.client_id, a.lead_id FROM activities a
            JOIN leads l ON l.client_id = a.client_id AND l.id = a.lead_id
            WHERE a.action = '{BOOKING_ACTION}' AND l.deleted_at IS NULL
    ) converted GROUP BY client_id"""  # noqa: S608 - names of our own vocabulary
_ACTIVITIES = "SELECT client_id, max(occurred_at) FROM activities GROUP BY client_id"
_LEADS = """SELECT client_id, max(created_at), max(updated_at), max(converted_at)
    FROM leads GROUP BY client_id"""


def _load_clients(connection: Connection, wanted: set[str], active: set[str]) -> pl.DataFrame:
    conversions = {row[0]: row[1] for row in connection.execute(text(_CONVERSIONS))}
    newest_lead = _load_newest(connection, _LEADS)
    newest_activity = _load_newest(connection, _ACTIVITIES)
    rows = [
        (c, c in active, conversions.get(c, 0), newest_lead.get(c), newest_activity.get(c))
        for c in sorted(wanted)
    ]
    return pl.DataFrame(rows, schema=CLIENT_SCHEMA, orient="row")


def _load_newest(connection: Connection, query: str) -> dict[str, datetime]:
    return {
        client_id: max(_moment(moment) for moment in moments if moment is not None)
        for client_id, *moments in connection.execute(text(query))
        if any(moment is not None for moment in moments)
    }


def _moment(value: datetime | str) -> datetime:
    # Aggregates of plain SQL come as SQLite stores them.
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _load_patterns(connection: Connection, wanted: set[str]) -> pl.DataFrame:
    names = ("client_id", "pattern_type", "sample_size", "confidence", "valid_until")
    table = conversion_patterns
    # As text: the driver's parsing of JSON would take longer than everything else here.
    query = select(*(table.c[name] for name in names), cast(table.c.patterns, Text))
    # Streamed: the documents of a fleet are hundreds of megabytes, what is kept of them is not.
    with connection.execution_options(yield_per=200).execute(query) as result:
        rows = [(*row[:5], *_inspect(row[1], row[5])) for row in result if row[0] in wanted]
    return pl.DataFrame(rows, schema=PATTERN_SCHEMA, orient="row")


def _inspect(kind: str, stored: str) -> tuple[str | None, int, int, *tuple[float | None, ...]]:
    """Return what is wrong with a document's shape, its worst defect, and its weights."""
    try:
        document = DOCUMENTS[PatternType(kind)].model_validate_json(stored)
    except ValueError as problem:
        return (_first_line(problem), *_inspect_loosely(kind, json.loads(stored)))
    notes = [(note.kind, note.rows, note.of) for note in document.data_notes]
    weights = document.recommended_weights if isinstance(document, WhoPattern) else None
    rows, of = _worst_defect(notes)
    return (None, rows, of, *(getattr(weights, n, None) for n in SCORE_COMPONENTS))


def _worst_defect(notes: Iterable[tuple[Any, Any, Any]]) -> tuple[int, int]:
    """Return rows with the most frequent defect of the data, and the rows it was looked for in."""
    defects = [
        (rows, of)
        for kind, rows, of in notes
        if kind in DEFECTS and isinstance(rows, int) and isinstance(of, int) and of > 0
    ]
    return max(defects, key=lambda pair: pair[0] / pair[1], default=(0, 0))


def _inspect_loosely(kind: str, plain: object) -> tuple[int, int, *tuple[float | None, ...]]:
    """Return what can be read of a document that does not fit."""
    fields = plain if isinstance(plain, dict) else {}
    notes = [n for n in _list(fields.get("data_notes")) if isinstance(n, dict)]
    weights = fields.get("recommended_weights") if kind == PatternType.WHO else None
    weights = weights if isinstance(weights, dict) else {}
    rows, of = _worst_defect((n.get("kind"), n.get("rows"), n.get("of")) for n in notes)
    return (rows, of, *(_number(weights.get(name)) for name in SCORE_COMPONENTS))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _first_line(problem: ValueError) -> str:
    errors = getattr(problem, "errors", None)
    if errors is None:
        return " ".join(str(problem).split())[:200]
    first = errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def _load_outcomes(connection: Connection, wanted: set[str]) -> pl.DataFrame:
    query = select(*(pattern_outcomes.c[name] for name in OUTCOME_SCHEMA))
    rows = [tuple(row) for row in connection.execute(query) if row.client_id in wanted]
    return pl.DataFrame(rows, schema=OUTCOME_SCHEMA, orient="row")


def _load_facts(connection: Connection, wanted: set[str]) -> dict[str, pl.DataFrame]:
    """Read the facts of the last refreshes, as the frames `drift` and `facts`."""
    table = learning_facts
    pools = _count_lenders(connection)
    drift: list[tuple[Any, ...]] = []
    rows: list[tuple[Any, ...]] = []
    query = select(table.c.client_id, table.c.computed_at, table.c.pool_id, table.c.facts)
    for client_id, computed_at, pool_id, stored in connection.execute(query):
        if client_id not in wanted:
            continue
        facts = LearningFacts.model_validate_json(stored)
        drift += [(client_id, *dict(one).values()) for one in facts.drift]
        borrowed = dict(facts.borrowing).values() if facts.borrowing else (None,) * 4
        lenders, withdrawn = pools.get(pool_id, (0, []))
        # Whoever withdrew later had opted in when its counts were used.
        strangers = sum(since <= computed_at for since in withdrawn)
        rows.append((client_id, facts.drift_error, *borrowed, lenders, strangers))
    return {
        "drift": pl.DataFrame(drift, schema=DRIFT_SCHEMA, orient="row"),
        "facts": pl.DataFrame(rows, schema=FACTS_SCHEMA, orient="row"),
    }


def _count_lenders(connection: Connection) -> dict[str | None, tuple[int, list[datetime]]]:
    """Per pool: how many lent to it, and since when those are as they are that do not lend now."""
    members = pool_members
    sizes = select(members.c.pool_id, func.count()).group_by(members.c.pool_id)
    found: dict[str | None, tuple[int, list[datetime]]] = {
        pool_id: (count, []) for pool_id, count in connection.execute(sizes)
    }
    is_out = ~clients.c.pool_opt_in | clients.c.deleted_at.is_not(None)
    since = func.coalesce(
        clients.c.deleted_at, clients.c.updated_at, clients.c.created_at, type_=UtcDateTime()
    )
    outside = (
        select(members.c.pool_id, since)
        .join(clients, clients.c.id == members.c.client_id)
        .where(is_out)
    )
    for pool_id, moment in connection.execute(outside):
        found[pool_id][1].append(moment)
    return found


@dataclass(frozen=True)
class Recorded:
    """What a check changed.

    Attributes:
        opened: Findings that were not open before.
        resolved: Findings that were open and are no more.
        messages: Messages queued, before they are multiplied by channel.
    """

    opened: int
    resolved: int
    messages: list[AlertMessage]


def record_findings(
    connection: Connection,
    checked: Collection[str],
    findings: Sequence[HealthFinding],
    *,
    now: datetime,
    config: HealthConfig,
    channels: Sequence[str],
    departed: Collection[str] = (),
) -> Recorded:
    """Write what a check found and queue what somebody must hear; call it in a `write_transaction`.

    A finding is told when it opens or grows from medium to high; a high one is told again when it
    is still open after `renotify_days` unless somebody acknowledged it; and its end is told once,
    when the client has nothing left that was told. More clients than `digest_clients` at once are
    told in one digest.

    Args:
        connection: A writing transaction.
        checked: Clients that were looked at: whatever of theirs is not in `findings` has ended.
        findings: All findings of those clients.
        now: Time of the check.
        config: Thresholds of telling.
        channels: Channels to queue for.
        departed: Clients that are no longer checked: what was open of theirs is closed, and the
            message says why.

    Raises:
        InputError: a finding is about a client that was not checked.
    """
    strangers = {finding.client_id for finding in findings} - set(checked)
    if strangers:
        raise InputError(f"a finding is about client {min(strangers)!r}, which was not checked")
    _take_turn(connection)
    concerned = {*checked, *departed}
    before = _load_findings(connection, concerned)
    found = {finding.finding_id: finding for finding in findings}
    opened = [f for f in found.values() if not _is_open(before.get(f.finding_id))]
    ended = [row for key, row in before.items() if row.resolved_at is None and key not in found]
    _write_found(connection, found.values(), now)
    _resolve(connection, [row.finding_id for row in ended], now)
    after = _load_findings(connection, concerned)
    messages = _tell(connection, list(after.values()), now, config, set(departed) - set(checked))
    enqueue_messages(connection, messages, channels, now=now)
    return Recorded(len(opened), len(ended), messages)


def _take_turn(connection: Connection) -> None:
    # SQLite's writing transaction excludes others already.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": RECORDING_LOCK})


def _is_open(row: Row[Any] | None) -> bool:
    return row is not None and row.resolved_at is None


def _load_findings(connection: Connection, checked: Collection[str]) -> dict[str, Row[Any]]:
    wanted = set(checked)
    table = health_findings
    query = select(table).where(table.c.resolved_at.is_(None) | table.c.told_at.is_not(None))
    return {row.finding_id: row for row in connection.execute(query) if row.client_id in wanted}


def _write_found(connection: Connection, findings: Iterable[HealthFinding], now: datetime) -> None:
    rows = [
        {
            "finding_id": one.finding_id,
            "client_id": one.client_id,
            "pattern_type": one.pattern_type,
            "rule": str(one.rule),
            "subject": one.subject,
            "severity": str(one.severity),
            "message": one.message.replace("\0", ""),
            "numbers": json.dumps(one.numbers, sort_keys=True).replace("\\u0000", ""),
            "first_seen_at": now,
            "last_seen_at": now,
        }
        for one in findings
    ]
    if not rows:
        return
    table = health_findings
    statement = _insert(connection, table)
    given = statement.excluded
    was_closed = table.c.resolved_at.is_not(None)
    grew = and_(table.c.severity != str(Severity.HIGH), given.severity == str(Severity.HIGH))
    statement = statement.on_conflict_do_update(
        index_elements=["finding_id"],
        set_={
            **{name: given[name] for name in ("severity", "message", "numbers", "last_seen_at")},
            "first_seen_at": case((was_closed, given.first_seen_at), else_=table.c.first_seen_at),
            "acknowledged_at": case((was_closed, None), else_=table.c.acknowledged_at),
            "told_at": case((grew, None), else_=table.c.told_at),
            "resolved_at": None,
        },
    )
    connection.execute(statement, rows)


def _insert(connection: Connection, table: Any) -> postgresql.Insert | sqlite.Insert:
    # Both have the same ON CONFLICT; SQLAlchemy keeps one class for each.
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def _resolve(connection: Connection, finding_ids: Sequence[str], now: datetime) -> None:
    _set(connection, finding_ids, {"resolved_at": now})


def _tell(
    connection: Connection,
    rows: Sequence[Row[Any]],
    now: datetime,
    config: HealthConfig,
    departed: set[str],
) -> list[AlertMessage]:
    """Decide who must hear what, and note that it was told."""
    by_client: dict[str, list[Row[Any]]] = {}
    for row in sorted(rows, key=_reading_order):
        by_client.setdefault(row.client_id, []).append(row)
    told: dict[AlertKind, list[tuple[str, list[AlertLine]]]] = {kind: [] for kind in AlertKind}
    marked: list[str] = []
    cleared: list[str] = []
    for client_id, of_client in by_client.items():
        open_rows = [row for row in of_client if row.resolved_at is None]
        loud = [row for row in open_rows if _is_loud(row, config)]
        if loud and (kind := _choose_kind(loud, now, config)) is not None:
            told[kind].append((client_id, [_line(row) for row in open_rows]))
            marked += [row.finding_id for row in loud]
        ended = [row for row in of_client if row.resolved_at is not None]
        if ended and not loud:
            why = _NO_LONGER_CHECKED if client_id in departed else None
            told[AlertKind.RESOLVED].append((client_id, [_line(row, why) for row in ended]))
            cleared += [row.finding_id for row in ended]
    _set(connection, marked, {"told_at": now})
    _set(connection, cleared, {"told_at": None})
    return [
        message
        for kind, clients_told in told.items()
        for message in compose_messages(
            kind,
            clients_told,
            event_key=now.isoformat(timespec="microseconds"),
            digest_clients=config.digest_clients,
        )
    ]


def _is_loud(row: Row[Any], config: HealthConfig) -> bool:
    return config.alert_severity == Severity.MEDIUM or row.severity == Severity.HIGH


def _choose_kind(loud: Sequence[Row[Any]], now: datetime, config: HealthConfig) -> AlertKind | None:
    if any(row.told_at is None for row in loud):
        return AlertKind.OPENED
    quiet = timedelta(days=config.renotify_days)
    # Who was told of a medium one once knows it; only a high one is worth a reminder.
    high = [row for row in loud if row.severity == Severity.HIGH]
    if any(row.acknowledged_at is None and now - row.told_at >= quiet for row in high):
        return AlertKind.STILL_OPEN
    return None


def _reading_order(row: Row[Any]) -> tuple[Any, ...]:
    kinds = [*PatternType, None]
    kind = PatternType(row.pattern_type) if row.pattern_type else None
    return (row.client_id, row.severity != Severity.HIGH, kinds.index(kind), row.rule, row.subject)


def _line(row: Row[Any], message: str | None = None) -> AlertLine:
    return AlertLine(
        finding_id=row.finding_id,
        client_id=row.client_id,
        pattern_type=row.pattern_type,
        rule=row.rule,
        severity=row.severity,
        message=message or row.message,
        numbers=json.loads(row.numbers),
        first_seen_at=row.first_seen_at,
    )


def _set(connection: Connection, finding_ids: Sequence[str], values: dict[str, Any]) -> None:
    table = health_findings
    for start in range(0, len(finding_ids), _IDS_PER_STATEMENT):
        some = finding_ids[start : start + _IDS_PER_STATEMENT]
        connection.execute(update(table).where(table.c.finding_id.in_(some)).values(values))


def enqueue_messages(
    connection: Connection,
    messages: Iterable[AlertMessage],
    channels: Sequence[str],
    *,
    now: datetime,
) -> None:
    """Queue messages for every channel; one that was queued before, by its key, is left alone."""
    rows = [
        {
            "message_key": message.message_key,
            "channel": channel,
            "client_id": message.client_id,
            "kind": str(message.kind),
            "payload": message.model_dump_json(),
            "created_at": now,
        }
        for message in messages
        for channel in channels
    ]
    if not rows:
        return
    _take_turn(connection)
    statement = _insert(connection, alert_outbox).on_conflict_do_nothing(
        index_elements=["channel", "message_key"]
    )
    connection.execute(statement, rows)


def forget_old(connection: Connection, before: datetime) -> int:
    """Drop messages that were sent and findings that were closed before a moment.

    What waits, what was refused for good (nobody has heard of it), and a closed finding whose end
    was not told yet are kept, however old.

    Returns:
        Rows dropped.
    """
    done = (
        alert_outbox.delete().where(alert_outbox.c.sent_at < before),
        health_findings.delete().where(
            health_findings.c.resolved_at < before, health_findings.c.told_at.is_(None)
        ),
    )
    return sum(connection.execute(statement).rowcount for statement in done)


@dataclass(frozen=True)
class OpenFinding:
    """A finding that is open now."""

    line: AlertLine
    acknowledged_at: datetime | None
    told_at: datetime | None


def list_open_findings(
    engine: Engine, client_ids: Collection[str] | None = None
) -> list[OpenFinding]:
    """Return the open findings, high first within a client."""
    table = health_findings
    query = select(table).where(table.c.resolved_at.is_(None))
    with reported_connection_errors(engine), engine.connect() as connection:
        rows = sorted(connection.execute(query), key=_reading_order)
    return [
        OpenFinding(_line(row), row.acknowledged_at, row.told_at)
        for row in rows
        if client_ids is None or row.client_id in client_ids
    ]


def acknowledge_findings(engine: Engine, finding_ids: Sequence[str], now: datetime) -> int:
    """Mark open findings as known: they are not told again while they stay open.

    Returns:
        How many were not acknowledged before.

    Raises:
        NotFoundError: one of them is not open; nothing was changed.
    """
    table = health_findings
    query = select(table.c.finding_id, table.c.acknowledged_at).where(table.c.resolved_at.is_(None))
    with reported_connection_errors(engine), write_transaction(engine) as connection:
        known = {row.finding_id: row.acknowledged_at for row in connection.execute(query)}
        for finding_id in finding_ids:
            if finding_id not in known:
                raise NotFoundError(f"no open finding has the id {finding_id!r}")
        new = [key for key in dict.fromkeys(finding_ids) if known[key] is None]
        _set(connection, new, {"acknowledged_at": now})
    return len(new)


def record_heartbeat(
    connection: Connection, name: str, now: datetime, detail: dict[str, Any]
) -> None:
    """Note that a piece of recurring work came to its end."""
    statement = _insert(connection, heartbeats)
    given = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["name"],
        set_={"succeeded_at": given.succeeded_at, "detail": given.detail},
    )
    row = {"name": name, "succeeded_at": now, "detail": json.dumps(detail, sort_keys=True)}
    connection.execute(statement, row)


def load_heartbeats(engine: Engine) -> dict[str, datetime]:
    """Return when each piece of recurring work last came to its end."""
    query = select(heartbeats.c.name, heartbeats.c.succeeded_at)
    with reported_connection_errors(engine), engine.connect() as connection:
        return {row.name: row.succeeded_at for row in connection.execute(query)}
