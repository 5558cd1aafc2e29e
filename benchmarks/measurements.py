"""What `make bench` measures: each under a name, at full size and at a quick one.

A measurement returns plain numbers; `benchmarks.goals` holds them against what was asked for.
"""

from collections.abc import Callable
from typing import Any

Measurement = Callable[[bool], dict[str, Any]]
"""Takes whether to be quick, returns what can be written as JSON."""

TOUCHES_A_LEAD = 7.465
"""Of the generated agencies; sizes that are asked for in touches are set in leads."""

LEADS_OF_THE_CURVE = 100
"""Leads a client where the number of clients grows: 10,000 clients then have 7.5 million touches,
which every contender can hold."""
CURVE = (1, 10, 50, 100, 1000, 10_000)
LARGEST_FLEET_OF_ROWS = 1000
"""Ten times as many would take the design that reads objects about an hour."""
LARGEST_FLEET_ALONE = 1000
"""What a second thread is worth shows here; ten times as many would only take longer."""
ALL = ("floor", "ours", "pandas", "duckdb")


def measure_clients(quick: bool) -> dict[str, Any]:
    """Detection against the number of clients, everybody, two threads and one."""
    from benchmarks import detection_speed, rows_speed  # noqa: PLC0415

    leads = 30 if quick else LEADS_OF_THE_CURVE
    points = []
    for clients in (1, 4) if quick else CURVE:
        rounds = 1 if quick or clients > 1000 else 3
        point = detection_speed.run(clients, leads, rounds, ALL)
        if clients <= LARGEST_FLEET_ALONE:
            alone = detection_speed.run(clients, leads, 1, ("floor", "ours"), threads=1)
            point["one_thread"] = {name: alone[name] for name in ("floor", "ours")}
        if clients <= LARGEST_FLEET_OF_ROWS and clients in {1, 4, 50, 1000}:
            point["rows"] = rows_speed.run(clients, leads)["rows"]
        points.append(point)
    return {"leads_a_client": leads, "points": points}


def measure_fifty(quick: bool) -> dict[str, Any]:
    """Detection of 50 clients of 1,000 leads."""
    from benchmarks import detection_speed  # noqa: PLC0415

    if quick:
        return detection_speed.run(2, 50, 1, ALL)
    return detection_speed.run(50, 1000, 5, ALL)


def measure_thousand(quick: bool) -> dict[str, Any]:
    """Detection of 1,000 clients with 10,000,000 touches."""
    from benchmarks import detection_speed  # noqa: PLC0415

    if quick:
        return detection_speed.run(4, 50, 1, ("floor", "ours"))
    return detection_speed.run(1000, round(10_000 / TOUCHES_A_LEAD) + 5, 3, ("floor", "ours"))


def measure_one_client(quick: bool) -> dict[str, Any]:
    """Detection of one client that has ever more touches."""
    from benchmarks import detection_speed  # noqa: PLC0415

    points = []
    for touches in (200, 800) if quick else (1000, 10_000, 100_000, 1_000_000):
        leads = round(touches / TOUCHES_A_LEAD)
        points.append(detection_speed.run(1, leads, 1 if quick else 3, ("floor", "ours")))
    return {"points": points}


def measure_rows(quick: bool) -> dict[str, Any]:
    """The design that is replaced, at 50 clients of 1,000 leads."""
    from benchmarks import rows_speed  # noqa: PLC0415

    return rows_speed.run(2, 30) if quick else rows_speed.run(50, 1000)


def measure_refresh(quick: bool) -> dict[str, Any]:
    """Features from PostgreSQL: first load, two per cent new; nothing changed for a fleet."""
    from benchmarks import refresh_speed  # noqa: PLC0415

    if quick:
        sides = ("floor", "first", "incremental", "again")
        found = refresh_speed.run(3, 30, 1, contenders=sides)
        return {"fifty": found, "thousand": found}
    fleet = refresh_speed.run(1000, 100, 3, contenders=("first", "again"))
    return {"fifty": refresh_speed.run(50, 1000, 5), "thousand": fleet}


def measure_dagster(quick: bool) -> dict[str, Any]:
    """The weekly work through Dagster and through the functions alone."""
    from benchmarks import dagster_overhead  # noqa: PLC0415

    if quick:
        return dagster_overhead.run(clients=3, leads=60, rounds=1)
    return dagster_overhead.run()


def measure_patterns(quick: bool) -> dict[str, Any]:
    """Writing patterns with their history."""
    from benchmarks import pattern_writing  # noqa: PLC0415

    if quick:
        return pattern_writing.run(5, 1, postgresql=False)
    return pattern_writing.run(1000, 3)


def measure_learning(quick: bool) -> dict[str, Any]:
    """One `learn` of 50 clients by the command line, in a process of its own."""
    from benchmarks import learning_speed  # noqa: PLC0415

    return learning_speed.run(2, 60) if quick else learning_speed.run(50, 1000)


def measure_import(quick: bool) -> dict[str, Any]:
    """Import of files; `python -m benchmarks.import_speed` takes the full million."""
    from benchmarks import import_speed  # noqa: PLC0415

    return import_speed.run(2000 if quick else 200_000)


MEASUREMENTS: dict[str, Measurement] = {
    "fifty": measure_fifty,
    "thousand": measure_thousand,
    "rows": measure_rows,
    "refresh": measure_refresh,
    "clients": measure_clients,
    "one_client": measure_one_client,
    "dagster": measure_dagster,
    "patterns": measure_patterns,
    "learning": measure_learning,
    "import": measure_import,
}
