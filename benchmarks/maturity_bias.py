"""How far two maturity rules mislead when a source of leads is new. No effect is planted.

Every lead converts with probability 12 %, whatever its source, after 17 days on average; nobody
else ever ends. A tenth of the clients' sources was first used 30 days ago. Printed: the rate that
each rule reads for that new source, and how often a test at 5 % calls it a winner.

Run: python -m benchmarks.maturity_bias
"""

import numpy as np
from scipy import stats

CLIENTS, LEADS, RATE, MEAN_DAYS, WINDOW, NEW_DAYS = 2000, 1000, 0.12, 17.0, 365.0, 30.0


def main() -> None:
    """Simulate, and print a table of both rules."""
    rng = np.random.default_rng(7)
    age = rng.uniform(0, WINDOW, (CLIENTS, LEADS))
    is_new = (age < NEW_DAYS) & (rng.random((CLIENTS, LEADS)) < 0.5)
    delay = rng.gamma(2.0, MEAN_DAYS / 2.0, (CLIENTS, LEADS))
    converted = (rng.random((CLIENTS, LEADS)) < RATE) & (delay < age)
    print(f"{'rule':44} {'rate of the new source':>24} {'called a winner':>16}")
    for name, rule in (
        ("drop young leads that are still open", "open"),
        ("drop all young leads", "all"),
    ):
        rates, wins, seen = [], 0, 0
        for client in range(CLIENTS):
            maturity = np.quantile(delay[client][converted[client]], 0.9)
            young = age[client] < maturity
            kept = ~young | (converted[client] if rule == "open" else False)
            new = kept & is_new[client]
            n, k = int(new.sum()), int((new & converted[client]).sum())
            if n == 0:
                continue
            seen += 1
            rates.append(k / n)
            p = stats.hypergeom.sf(k - 1, kept.sum(), (kept & converted[client]).sum(), n)
            wins += bool(p < 0.05)
        rate = f"{np.mean(rates):.3f} in {seen} clients" if seen else "not judged yet"
        print(f"{name:44} {rate:>24} {wins / CLIENTS:16.3f}")


if __name__ == "__main__":
    main()
