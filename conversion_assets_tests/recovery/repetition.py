"""A year of weekly refreshes on noise, and marks 9 and 10 by the tests that hold them."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from conversion_assets.domain.config import LearningConfig
from conversion_assets.features import build_features
from conversion_assets.learning import conclude, list_claims
from conversion_assets.survey import survey_clients
from conversion_assets_tests.recovery.agencies import list_affected
from conversion_assets_tests.recovery.marks import Mark
from conversion_assets_tests.recovery.worlds import HAZARD, WORLDS, YEAR_END, generate_null

ROOT = Path(__file__).parents[2]
INVARIANCE = (
    "conversion_assets_tests/property/test_invariance.py",
    "conversion_assets_tests/property/test_no_look_ahead.py",
)
EDGES = "conversion_assets_tests/unit/learning/test_edges.py"
EDGES_OF_WORLDS = "conversion_assets_tests/recovery/test_edges_of_worlds.py"

# Features of so many clients are held at once.
BATCH = 50
# Before the first refresh lies a whole window, and a month of leads that touches still follow.
BEFORE_DAYS = 365 + 30

Claim = tuple[str, str, str]
"""Client, dimension, value."""


@dataclass(frozen=True)
class Look:
    """What one weekly refresh called an act, of what truly has no effect.

    Attributes:
        alone: when this week is judged alone.
        remembered: when it knows what the week before said.
    """

    alone: frozenset[Claim]
    remembered: frozenset[Claim]


def replay(
    world: str, clients: int, leads: int, weeks: int, *, seed: int = 52, first_client: int = 0
) -> Iterator[Look]:
    """Refresh clients without any effect once a week, oldest week first.

    Each week's rows are counted once and judged twice. Nobody shares with a pool.

    Args:
        world: of the two.
        clients: their number.
        leads: of each client, over the window of the first refresh and all weeks since.
        weeks: number of refreshes, the last at the end of the year.
        seed: of the clients' rows.
        first_client: number of the first one.
    """
    agency = generate_null(
        world, clients, leads, seed, days=BEFORE_DAYS + 7 * weeks, first_client=first_client
    )
    features = build_features(agency.clients, agency.leads, agency.activities)
    ids = agency.clients["id"].to_list()
    # Unknown to the detectors, some rates differ in a world where nothing was planted.
    affected = {(c, d) for c, d, _ in list_affected(agency.truth).iter_rows()}
    settings = LearningConfig()
    earlier = None
    for week in range(weeks):
        as_of = YEAR_END - timedelta(weeks=weeks - 1 - week)
        surveys, errors = survey_clients(
            features.leads, features.touches, ids, as_of=as_of, config=settings
        )
        judged = []
        for memory in (None, earlier):
            parts = conclude(surveys, errors, members=(), client_ids=ids, as_of=as_of,
                             config=settings, earlier=memory)  # fmt: skip
            documents = {key: one for part in parts for key, one in part.documents.items()}
            judged.append(
                {
                    client: list_claims(d for (c, _), d in documents.items() if c == client)
                    for client in {c for c, _ in documents}
                }
            )
        false = [
            frozenset(
                (client, claim.dimension, claim.value)
                for client, claims in one.items()
                for _, claim in claims
                if (client, claim.dimension) not in affected
            )
            for one in judged
        ]
        yield Look(*false)
        earlier = judged[1]


def measure_weekly_looks(
    clients: int, leads: int, weeks: int, *, world: str = HAZARD, seed: int = 52
) -> list[Mark]:
    """Clients without any effect that ever show an act when all is refreshed weekly."""
    alone: set[str] = set()
    first: dict[str, tuple[int, str]] = {}
    for start in range(0, clients, BATCH):
        batch = min(BATCH, clients - start)
        looks = replay(world, batch, leads, weeks, seed=seed, first_client=start)
        for week, look in enumerate(looks, 1):
            alone |= {client for client, *_ in look.alone}
            for client, dimension, _ in sorted(look.remembered):
                first.setdefault(client, (week, dimension))
    name = f"null clients that ever hear act in {weeks} weekly refreshes"
    started = sum(week == 1 for week, _ in first.values())
    return [
        Mark(1, f"{name}, {leads:,} leads", len(first) / clients, high=0.10, n=clients,
             detail=_count(first.values()), world=world),
        Mark(1, "the same in the first of them", started / clients, n=clients, world=world),
        Mark(1, f"the same, each of the {weeks} weeks judged alone", len(alone) / clients,
             n=clients, world=world),
    ]  # fmt: skip


def _count(first: Iterable[tuple[int, str]]) -> dict[str, str]:
    """In which week, and about what, clients first heard an act."""
    kinds = Counter(
        f"{dimension}, {'first look' if week == 1 else 'later'}" for week, dimension in first
    )
    return {kind: str(count) for kind, count in kinds.most_common()}


def measure_invariance(world: str = HAZARD) -> list[Mark]:
    """Mark 9: rows, columns, chunks, threads and strangers change no byte; nor does the future."""
    names = (
        "order, threads, chunks, other clients: tests that hold",
        "facts after as_of, column by column: tests that hold",
    )
    return [_run(9, name, file, world) for name, file in zip(names, INVARIANCE, strict=True)]


def measure_edges() -> list[Mark]:
    """Mark 10: a document or a stated outcome at every edge, a million touches among them."""
    return [
        _run(10, "edges: tests that hold", EDGES, "rows made for each"),
        *(
            _run(10, "clients at the edges among others: tests that hold", EDGES_OF_WORLDS, world,
                 "-k", world)
            for world in WORLDS
        ),
    ]  # fmt: skip


def _run(number: int, name: str, file: str, world: str, *options: str) -> Mark:
    """Share of the tests in a file that pass, run as they stand on the rows of a world."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", file, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RECOVERY_WORLD": world},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    passed = [line for line in lines if line.startswith("PASSED ")]
    others = [line for line in lines if line.startswith(("FAILED ", "ERROR ", "SKIPPED "))]
    total = len(passed) + len(others)
    detail = {line.split(" ")[1]: line.split(" ")[0] for line in others}
    return Mark(number, name, len(passed) / max(total, 1), low=1.0, n=total, detail=detail,
                world=world, reason="; ".join(others[:3]))  # fmt: skip
