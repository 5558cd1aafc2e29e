"""How many clients ever show an "act" when nothing works and everything is refreshed weekly.

Run: python -m benchmarks.weekly_looks [clients] [weeks]
"""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import polars as pl

from conversion_assets.features import build_features
from conversion_assets.learning import detect_patterns, list_claims
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency

END = datetime(2026, 1, 4, tzinfo=UTC)


def replay(clients: int, leads: int, weeks: int) -> Iterator[tuple[int, set[str], set[str]]]:
    """Refresh clients without any effect once a week.

    Yields:
        Week from 1, clients that ever showed an act when each week is judged alone, and with the
        memory of earlier refreshes.
    """
    agency = generate_agency(
        SyntheticConfig(
            clients=clients, leads=leads, seed=52, null=True, pool_opt_in=0.0, as_of=END,
            days=365 + 7 * weeks + 30,
        )
    )  # fmt: skip
    features = build_features(agency.clients, agency.leads, agency.activities)
    names = agency.clients.select(client_id="id", pool_opt_in=pl.lit(False))
    alone: set[str] = set()
    remembered: set[str] = set()
    earlier = None
    for week in range(weeks):
        as_of = END - timedelta(weeks=weeks - 1 - week)
        plain = detect_patterns(features.leads, features.touches, names, as_of=as_of)
        alone |= {client for (client, _), d in plain.documents.items() if d.claims}
        aware = (
            plain
            if earlier is None
            else detect_patterns(
                features.leads, features.touches, names, as_of=as_of, earlier=earlier
            )
        )
        remembered |= {client for (client, _), d in aware.documents.items() if d.claims}
        earlier = {
            client: list_claims(d for (c, _), d in aware.documents.items() if c == client)
            for client in {c for c, _ in aware.documents}
        }
        yield week + 1, alone, remembered


def main(clients: int = 100, weeks: int = 52) -> None:
    """Replay the weeks with and without the memory of earlier refreshes, and print both."""
    print(f"{'refresh':>8} {'ever act, each week alone':>26} {'ever act, with memory':>22}")
    for week, alone, remembered in replay(clients, 2000, weeks):
        print(f"{week:8d} {len(alone) / clients:26.3f} {len(remembered) / clients:22.3f}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
