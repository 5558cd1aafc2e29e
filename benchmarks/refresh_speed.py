"""How long the feature store takes to follow PostgreSQL, beside a floor that keeps nothing.

Contenders, each in a process of its own, in turns on the same server; every one times itself after
its imports, and memory is the peak of the whole process:

floor
    Reads the columns that features depend on, whole tables, by binary COPY into Arrow: the fastest
    reader at hand. Decodes subject and body of every snapshot, matches the same vocabulary in plain
    Polars expressions (a pass for each category), reads titles, derives touch numbers, local time
    and conversion, and counts the 22 breakdowns of `benchmarks.contenders`. It does not check or
    repair anything (damaged JSON, repeated ids, unknown zones would stop it or be miscounted), does
    not look at metadata, keeps no row, writes no file, hashes nothing, and holds everything in
    memory at once. Its counts are those of the store, as `conversion_assets_tests` proves.
read
    The reading of the floor alone.
first
    `refresh_features` into an empty store.
incremental
    `refresh_features` of a store that lacks 2 % of the rows: a fiftieth of each client's leads and
    a fiftieth of its activities are new, half of these of the new leads and half of old ones.
again
    `refresh_features` of a store that lacks nothing.

Run: python -m benchmarks.refresh_speed [--clients 50] [--leads 1000] [--rounds 3] [--growth]
"""

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import Engine, text

from benchmarks.contenders.breakdowns import LEAD_COLUMNS, TOUCH_COLUMNS, list_flags, settle

AS_OF = datetime(2026, 1, 4, tzinfo=UTC)
DIFFERENT_CLIENTS = 20
"""Clients generated; a larger fleet holds copies of them under other names."""
NEW_EVERY = 50
"""One row in so many is new to the incremental refresh."""
MOST_FIRST = 1.5
MOST_INCREMENTAL = 0.10
MOST_AGAIN_S = 2.0
MOST_EXPONENT = 1.05
MOST_PEAK_MB = 2000
CONTENDERS = ("read", "floor", "first", "incremental", "again")
TABLES = ("clients", "leads", "activities")


# -- data ----------------------------------------------------------------------------------------


def make_agency(clients: int, leads: int) -> tuple[dict[str, pl.DataFrame], list[tuple[str, str]]]:
    """Rows of some different clients, and (name, original) of every client that holds them."""
    from conversion_assets.synthetic.config import SyntheticConfig  # noqa: PLC0415
    from conversion_assets.synthetic.generator import generate_agency  # noqa: PLC0415

    different = min(clients, DIFFERENT_CLIENTS)
    agency = generate_agency(SyntheticConfig(clients=different, leads=leads, seed=1, as_of=AS_OF))
    originals = sorted(agency.clients["id"].to_list())
    names = [
        (f"{original}-{copy:04d}", original)
        for copy in range(-(-clients // different))
        for original in originals
    ][:clients]
    return {table: getattr(agency, table) for table in TABLES}, names


def split_new(rows: dict[str, pl.DataFrame]) -> tuple[dict[str, pl.DataFrame], ...]:
    """Rows that are there at first, and those that come later; see the module."""
    leads = rows["leads"].with_columns(
        is_new=pl.int_range(pl.len()).over("client_id") % NEW_EVERY == NEW_EVERY - 1
    )
    fresh = leads.filter("is_new").select("client_id", lead_id="id")
    of_new = rows["activities"].join(fresh, on=["client_id", "lead_id"], how="semi")
    of_old = rows["activities"].join(fresh, on=["client_id", "lead_id"], how="anti")
    late = of_old.filter(
        pl.int_range(pl.len()).over("client_id") % (2 * NEW_EVERY) == 2 * NEW_EVERY - 1
    )
    early = of_old.join(late, on=["client_id", "id"], how="anti")
    # A new lead has been touched half as often as one that is through.
    begun = of_new.filter(pl.int_range(pl.len()).over("client_id") % 2 == 0)
    first = {
        "clients": rows["clients"],
        "leads": leads.filter(~pl.col("is_new")).drop("is_new"),
        "activities": early,
    }
    later = {"leads": leads.filter("is_new").drop("is_new"), "activities": pl.concat([late, begun])}
    return first, later


def fill(engine: Engine, rows: dict[str, pl.DataFrame], names: list[tuple[str, str]]) -> None:
    """Copy rows into the tables, once for each name, in one transaction; settle the server."""
    from conversion_assets.domain.contracts import CONTRACTS  # noqa: PLC0415
    from conversion_assets.storage.database import (  # noqa: PLC0415
        next_change_id,
        write_transaction,
    )
    from conversion_assets.storage.upsert import copy_rows  # noqa: PLC0415

    with write_transaction(engine) as connection:
        number = next_change_id(connection)
        for table, frame in rows.items():
            owner = "id" if table == "clients" else "client_id"
            columns = CONTRACTS[table].columns()
            for start in range(0, len(names), DIFFERENT_CLIENTS):
                part = pl.DataFrame(
                    names[start : start + DIFFERENT_CLIENTS], schema=["copy", owner], orient="row"
                )
                copies = frame.join(part, on=owner).with_columns(pl.col("copy").alias(owner))
                whole = copies.select(
                    (pl.col(name) if name in copies.columns else pl.lit(None))
                    .cast(column.dtype)
                    .alias(name)
                    for name, column in columns.items()
                ).with_columns(change_id=pl.lit(number))
                copy_rows(connection, table, whole.sort(owner, "id"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in rows:
            connection.execute(text(f"VACUUM ANALYZE {table}"))
        connection.execute(text("CHECKPOINT"))


# -- the floor -----------------------------------------------------------------------------------

_LEAD_NAMES = (
    "client_id", "id", "first_name", "title", "company_name", "industry", "employee_count",
    "country", "timezone", "source", "is_new_role", "is_hiring", "recently_funded", "status",
    "als_tier", "scored_at", "created_at", "converted_at", "updated_at",
)  # fmt: skip
_PERSON = ("first_name", "company_name", "industry")
_TEXT = pl.Struct({"subject": pl.String, "body": pl.String, "template_id": pl.String})


def read_tables(url: str) -> dict[str, pl.DataFrame]:
    """The columns that features depend on, whole tables."""
    from adbc_driver_postgresql import dbapi  # noqa: PLC0415

    columns = {
        "clients": "id, timezone",
        "leads": f"{', '.join(_LEAD_NAMES)}, als_components::text",
        "activities": "client_id, id, lead_id, channel, action, sequence_id, led_to_booking,"
        " occurred_at, content_snapshot::text, metadata::text",
    }
    found: dict[str, Any] = {}
    with dbapi.connect(url) as connection, connection.cursor() as cursor:
        for table in TABLES:
            where = "" if table == "activities" else " WHERE deleted_at IS NULL"
            cursor.execute(f"SELECT {columns[table]} FROM {table}{where}")
            found[table] = pl.from_arrow(cursor.fetch_arrow_table())
    return found


def count_floor(url: str) -> pl.DataFrame:
    """The 22 breakdowns straight from the system of record; see `contenders.floor.count`."""
    from conversion_assets.domain.terms import BOOKING_ACTION, OUTBOUND_ACTIONS  # noqa: PLC0415

    rows = read_tables(url)
    events, key = rows["activities"], ["client_id", "lead_id"]
    booked = (
        events.filter(pl.col("action") == BOOKING_ACTION)
        .group_by(key)
        .agg(booked_at=pl.col("occurred_at").min())
    )
    converted = pl.when(pl.col("status") == "converted").then("converted_at")
    leads = (
        rows["leads"]
        .rename({"id": "lead_id"})
        .join(booked, on=key, how="left")
        .join(rows["clients"].select(client_id="id", client_zone="timezone"), on="client_id")
        .with_columns(lead_converted_at=pl.min_horizontal(converted, "booked_at"))
        .with_columns(outcome=pl.col("lead_converted_at").is_not_null(), **_titles(rows["leads"]))
        .with_columns(_size())
    )
    channels = {action: channel.value for action, channel in OUTBOUND_ACTIONS.items()}
    touches = (
        events.with_columns(
            channel=pl.col("action").replace_strict(channels, default=None, return_dtype=pl.String)
        )
        .drop_nulls("channel")
        .join(
            leads.select(*key, "lead_converted_at", "timezone", "client_zone", *_PERSON),
            on=key,
        )
        .sort(*key, "occurred_at", "id")
    )
    due = pl.col("occurred_at") <= pl.col("lead_converted_at")
    touches = touches.with_columns(
        touch_number=pl.int_range(1, pl.len() + 1).over(key),
        outcome=(due & ~due.shift(-1, fill_value=False).over(key)).fill_null(False),
        adds=pl.col("channel").is_first_distinct().over(key).cast(pl.Int32),
        zone=pl.coalesce("timezone", "client_zone"),
    ).with_columns(channel_count=pl.col("adds").cum_sum().over(key))
    touches = pl.concat([_local_time(touches), *_content(touches)], how="horizontal")
    flags = list_flags(touches.columns)
    plans = [
        *(_count_column(leads, column) for column in LEAD_COLUMNS),
        *(_count_column(touches, column) for column in TOUCH_COLUMNS),
        *(_count_flag(touches, family, c) for family, names in flags.items() for c in names),
    ]
    return settle(pl.concat(pl.collect_all(plans)))


def _titles(leads: pl.DataFrame) -> dict[str, pl.Expr]:
    from conversion_assets.features.titles import normalize_title  # noqa: PLC0415

    distinct = leads["title"].drop_nulls().unique().to_list()
    read = [normalize_title(title) for title in distinct]
    return {
        name: pl.col("title").replace_strict(
            distinct, [getattr(one, name) for one in read], default=None, return_dtype=pl.String
        )
        for name in ("seniority", "function", "title")
    }


def _size() -> pl.Expr:
    from conversion_assets.domain.terms import SIZE_BUCKETS  # noqa: PLC0415

    label: pl.Expr = pl.lit(None, dtype=pl.String)
    for name, highest in reversed(SIZE_BUCKETS):
        label = pl.when(pl.col("employee_count") <= highest).then(pl.lit(name)).otherwise(label)
    return label.alias("size_bucket")


def _local_time(touches: pl.DataFrame) -> pl.DataFrame:
    parts = [
        part.with_columns(
            local_weekday=pl.col("occurred_at").dt.convert_time_zone(zone).dt.weekday(),
            local_hour=pl.col("occurred_at").dt.convert_time_zone(zone).dt.hour(),
        ).select("at", "local_weekday", "local_hour")
        for (zone,), part in touches.select("occurred_at", "zone")
        .with_row_index("at")
        .partition_by("zone", as_dict=True)
        .items()
        if zone is not None
    ]
    rows = touches.select("client_id", "channel", "touch_number", "channel_count", "outcome")
    local = pl.concat(parts)
    return rows.with_row_index("at").join(local, on="at", how="left", maintain_order="left")


def _content(touches: pl.DataFrame) -> list[pl.DataFrame]:
    """Columns of what was said, by plain expressions over the decoded texts."""
    from conversion_assets.domain.content import (  # noqa: PLC0415
        DEFAULT_VOCABULARY as VOCABULARY,
    )
    from conversion_assets.domain.content import SUBJECT_LENGTHS, normalized_words  # noqa: PLC0415
    from conversion_assets.features.content import compute_personal_values  # noqa: PLC0415

    snapshot = touches["content_snapshot"].str.json_decode(_TEXT).struct.unnest()
    people = touches.select("client_id", "lead_id", *_PERSON)
    values = compute_personal_values(people.unique(), VOCABULARY)
    texts = pl.concat([snapshot, people.select("client_id", "lead_id")], how="horizontal")
    texts = texts.join(
        values.drop(_PERSON),
        on=["client_id", "lead_id"],
        how="left",
        maintain_order="left",
    )

    def words(name: str) -> pl.Expr:
        spaced = pl.concat_str(pl.lit(" "), name, pl.lit(" ")).str.to_lowercase()
        spaced = spaced.str.replace_all("?", " ? ", literal=True)
        return spaced.str.replace_all(r"[^\p{L}\p{N}?]+", " ").alias(f"{name}_words")

    texts = texts.with_columns(words("subject"), words("body"))
    categories = {
        **{f"pain__{name}": listed for name, listed in VOCABULARY.pain_points.items()},
        **{f"angle__{name}": listed for name, listed in VOCABULARY.angles.items()},
        "personal__recent_news": VOCABULARY.recent_news,
        "personal__mutual_connection": VOCABULARY.mutual_connection,
    }

    def either(found: Any) -> pl.Expr:
        sides = [found(pl.col(f"{name}_words")).fill_null(False) for name in ("subject", "body")]
        return sides[0] | sides[1]

    def names(value: pl.Expr) -> pl.Expr:
        return either(lambda text: text.str.contains(value, literal=True))

    greeted = [
        names(pl.concat_str(pl.lit(f" {word}"), "greeted_name_words"))
        for word in ("hi", "hey", "hello", "dear", "morning", "afternoon", "evening", "thanks")
    ]
    phrases = sorted(VOCABULARY.ctas, key=lambda phrase: (-len(normalized_words(phrase)), phrase))
    types = {normalized_words(phrase): VOCABULARY.ctas[phrase] for phrase in reversed(phrases)}
    first = pl.col("body_words").str.extract_many(
        [normalized_words(phrase) for phrase in phrases], leftmost=True
    )
    count = pl.col("subject").str.count_matches(r"\S+")
    (short, few), (medium, some), (long, _) = SUBJECT_LENGTHS
    length = pl.when(count <= few).then(pl.lit(short)).when(count <= some).then(pl.lit(medium))
    said = texts.select(
        "template_id",
        length.when(count > some).then(pl.lit(long)).alias("subject_length"),
        first.list.first()
        .replace_strict(types, default=None, return_dtype=pl.String)
        .alias("cta_type"),
        *(
            pl.col("subject").str.contains(f"(?i){pattern}").fill_null(False)
            .alias(f"subject__{name}")
            for name, pattern in VOCABULARY.subject_patterns.items()
        ),
        *(
            either(
                lambda text, listed=listed: text.str.contains_any(
                    [normalized_words(word) for word in listed]
                )
            ).alias(name)
            for name, listed in categories.items()
        ),
        names(pl.col("company_words")).alias("personal__company_mention"),
        pl.any_horizontal(names(pl.col("first_name_words")), *greeted)
        .alias("personal__first_name"),
        names(pl.col("industry_words")).alias("personal__industry_specific"),
    )  # fmt: skip
    return [said]


def _count_column(rows: pl.DataFrame, column: str) -> pl.LazyFrame:
    return (
        rows.lazy()
        .group_by("client_id", column)
        .agg(n=pl.len().cast(pl.Int64), k=pl.col("outcome").sum().cast(pl.Int64))
        .select(
            "client_id",
            pl.lit(column).alias("breakdown"),
            pl.col(column).cast(pl.String).alias("value"),
            "n",
            "k",
        )
    )


def _count_flag(rows: pl.DataFrame, family: str, column: str) -> pl.LazyFrame:
    return (
        rows.lazy()
        .group_by("client_id")
        .agg(
            n=pl.col(column).sum().cast(pl.Int64),
            k=(pl.col(column) & pl.col("outcome")).sum().cast(pl.Int64),
        )
        .select(
            "client_id",
            pl.lit(family).alias("breakdown"),
            pl.lit(column.removeprefix(f"{family}__")).alias("value"),
            "n",
            "k",
        )
    )


# -- measuring -----------------------------------------------------------------------------------


def _measure(contender: str, url: str, store: Path) -> dict[str, Any]:
    """Run one contender here and now."""
    import adbc_driver_postgresql.dbapi  # noqa: F401, PLC0415 - imports are not timed

    from conversion_assets.refresh.features import refresh_features  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415
    from conversion_assets.storage.database import create_database_engine  # noqa: PLC0415

    engine = create_database_engine(url)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    begun = usage.ru_utime + usage.ru_stime
    started = time.perf_counter()
    found: dict[str, Any] = {}
    if contender == "floor":
        count_floor(url)
    elif contender == "read":
        read_tables(url)
    else:
        report = refresh_features(engine, FeatureStore(store))
        found = {"rows_written": report.rows_written, "is_full": report.is_full}
    seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime - begun,
        "peak_mb": read_peak_mb(),
        **found,
    }


def read_peak_mb() -> float:
    """Peak memory of this process; `getrusage` would begin with that of the parent."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def _call(contender: str, url: str, store: Path, threads: int | None) -> dict[str, Any]:
    environment = os.environ | ({"POLARS_MAX_THREADS": str(threads)} if threads else {})
    command = [sys.executable, "-m", "benchmarks.refresh_speed", "--contender", contender,
               "--store", str(store), "--url-from-stdin"]  # fmt: skip
    done = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True, input=url
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(
    clients: int = 50,
    leads: int = 1000,
    rounds: int = 3,
    *,
    contenders: tuple[str, ...] = CONTENDERS,
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure some contenders in turns on one server.

    Args:
        clients: How many.
        leads: Leads of each; about 7.6 activities a lead.
        rounds: Turns.
        contenders: Which; incremental and again need first.
        threads: Threads of Polars, as many as processors where None.

    Returns:
        Medians per contender: seconds, seconds of the processor, peak memory in MB; ratio to the
        floor and to the first load, each the median of the rounds' own ratios.
    """
    from conversion_assets.storage.database import create_database_engine, migrate  # noqa: PLC0415
    from conversion_assets_tests.databases import running_postgres  # noqa: PLC0415

    rows, names = make_agency(clients, leads)
    first, later = split_new(rows)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    with running_postgres() as server, tempfile.TemporaryDirectory() as folder:
        url = server.render_as_string(hide_password=False)
        engine = create_database_engine(url)
        migrate(engine)
        fill(engine, first, names)
        base = Path(folder) / "base"
        if "incremental" in contenders:
            _call("first", url, base, threads)
        fill(engine, later, names)
        engine.dispose()
        for turn in range(rounds):
            for name in contenders:
                store = Path(folder) / f"{name}-{turn}"
                if name == "incremental":
                    shutil.copytree(base, store)
                    # The copy's pages would be written during the refresh, and not be its own.
                    os.sync()
                if name == "again":
                    store = Path(folder) / f"first-{turn}"
                found[name].append(_call(name, url, store, threads))
            for name in contenders:
                shutil.rmtree(Path(folder) / f"{name}-{turn}", ignore_errors=True)
    return {
        "clients": clients,
        "leads": clients * leads,
        "activities": sum(
            part["activities"].height for part in (first, later)
        ) * clients // min(clients, DIFFERENT_CLIENTS),
        **{name: _summarise(name, found) for name in contenders},
    }  # fmt: skip


def _summarise(name: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rows = found[name]
    summary: dict[str, Any] = {
        key: round(statistics.median(row[key] for row in rows), 3)
        for key in ("seconds", "cpu_s", "peak_mb")
    }
    if "rows_written" in rows[0]:
        summary["rows_written"] = rows[0]["rows_written"]
    for other in ("read", "floor", "first"):
        if other in found and other != name:
            ratios = [
                row["seconds"] / least["seconds"]
                for row, least in zip(rows, found[other], strict=True)
            ]
            summary[f"ratio_to_{other}"] = round(statistics.median(ratios), 3)
    return summary


def growth(sizes: list[tuple[int, int]], rounds: int = 1) -> dict[str, Any]:
    """Exponent of the first load's time over (clients, leads of each), smallest and largest."""
    rows = [
        (found["activities"], found["first"])
        for clients, leads in sizes
        for found in [run(clients, leads, rounds, contenders=("first",))]
    ]
    (small, quick), (large, slow) = rows[0], rows[-1]

    def exponent(key: str) -> float:
        return round(math.log(slow[key] / quick[key]) / math.log(large / small), 3)

    return {
        "most": MOST_EXPONENT,
        "exponent": exponent("seconds"),
        "exponent_cpu": exponent("cpu_s"),
        "rows": [{"activities": count, **found} for count, found in rows],
    }


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refresh_speed")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--leads", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument(
        "--growth", nargs="+", metavar="CLIENTSxLEADS", help="sizes, as 100x100 10000x100"
    )
    parser.add_argument("--contender", choices=CONTENDERS, help="this one alone")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--url-from-stdin", action="store_true")
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(_measure(options.contender, sys.stdin.read().strip(), options.store)))
    elif options.growth:
        sizes = [(int(c), int(n)) for c, n in (size.split("x") for size in options.growth)]
        print(json.dumps(growth(sizes, options.rounds), indent=2))
    else:
        found = run(
            options.clients,
            options.leads,
            options.rounds,
            contenders=tuple(options.only),
            threads=options.threads,
        )
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
