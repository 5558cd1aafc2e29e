"""How often the drift tests cry wolf: clients whose leads never changed.

`python -m benchmarks.drift_alarms` prints the table of docs/decisions/drift.md. Two samples of one
distribution of six values, 12 % conversion; `rows` of one lead all carry the same value.
"""

import numpy as np
import polars as pl

from conversion_assets.evaluation.drift import (
    COUNTS,
    compare_base_rates,
    compare_rates,
    compare_shares,
)

SHARES = np.array([0.35, 0.25, 0.15, 0.12, 0.08, 0.05])
RATE = 0.12
CLIENTS = 4000


def draw(generator: np.random.Generator, leads: int, rows: int) -> pl.DataFrame:
    """Counts of `CLIENTS` clients with `leads` leads of `rows` rows each."""
    picked = generator.multinomial(leads, SHARES, CLIENTS)
    client, value = np.indices(picked.shape).reshape(2, -1)
    of_leads = picked.ravel()
    frame = pl.DataFrame(
        {
            "client_id": client.astype(str),
            "pattern_type": "who",
            "dimension": "d",
            "value": value.astype(str),
            "n": of_leads * rows,
            "settled": of_leads * rows,
            "k": generator.binomial(of_leads * rows, RATE),
            "own_squares": of_leads * rows**2,
            "products": of_leads * rows**2,
            "squares": leads * rows**2,
        }
    )
    return frame.select(pl.col(name).cast(kind) for name, kind in COUNTS.items())


def main() -> None:
    """Print the table."""
    print("| leads | rows of a lead | PSI > 0.1 | PSI > ours | shares | rates | base rate |")
    print("|---|---|---|---|---|---|---|")
    for rows in (1, 5):
        for leads in (100, 200, 500, 5000):
            generator = np.random.default_rng(leads + rows)
            old, new = (draw(generator, leads, rows) for _ in range(2))
            shares = compare_shares(old, new)
            alarms = [
                (shares["change"] > 0.1).mean(),
                (shares["change"] > shares["change_threshold"]).mean(),
                shares["is_drift"].mean(),
                compare_rates(old, new)["is_drift"].mean(),
                compare_base_rates(old, new)["is_drift"].mean(),
            ]
            print(f"| {leads} | {rows} | " + " | ".join(f"{a:.1%}" for a in alarms) + " |")


if __name__ == "__main__":
    main()
