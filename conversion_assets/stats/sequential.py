"""Evidence that stays honest when the same question is asked again every week.

An e-value is a bet against "no effect" that gains nothing on average when there is none: however
often and whenever one looks at data that grow, the chance that it ever reaches 1 / a is at most a
(Ville). Its reciprocal is therefore a p-value that repeated looking cannot wear out.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import special

from conversion_assets.stats.multiplicity import has_freedom, match_shifted_binomial

Floats = NDArray[np.float64]

# Odds ratios that the bet is spread over, evenly: effects worth acting on, in both directions.
# Smaller ones would need more data than clients have; larger ones are caught by these. With each
# ratio stands its inverse, so that the rest of the sample is judged like the cell.
BET_ODDS: Floats = np.array([1 / 3, 0.5, 2 / 3, 0.8, 1.25, 1.5, 2.0, 3.0])

# No ledger needs more: the best of 10,000 tests is an act at 1e5. Further out the matched null is
# not vouched for, and nothing may be won there.
MOST_EVIDENCE = 1e6

# The matched null is not the exact one: by exact summation the capped bet gains up to 8 % on
# average (cells that hold half of 200 rows at 40 %; 0 % in the median). It is paid for here, so
# that the mean is at most 1.
MATCHING_MARGIN = 1.1


def compute_always_valid_p(k: Floats, expected: Floats, variance: Floats, third: Floats) -> Floats:
    """p-values that remain valid when the data grow and are looked at again and again.

    The likelihood ratio of an odds ratio w against none is w^k over the mean of w^k under the
    null; here it is averaged over `BET_ODDS`, with the null distribution of `multiplicity`: the
    shifted binomial of three moments. Matching mean and variance alone let the bet gain a
    hundredfold in cells that hold most of the sample.

    Args:
        k: Observed conversions, shape (cells,).
        expected: Mean of the count under the null, shape (cells,).
        variance: Its variance under the null, shape (cells,).
        third: Its third central moment under the null, shape (cells,).

    Returns:
        min(1, 1 / e), shape (cells,); 1 where the null leaves no freedom. Benjamini and Hochberg's
        procedure on these is the e-BH procedure, valid under any dependence.

    Source:
        Johari, Pekelis & Walsh 2017 (mixture sequential test); Wang & Ramdas 2022 (e-BH).

    Example:
        >>> many, few = np.array([40.0]), np.array([4.0])
        >>> bool(compute_always_valid_p(many, many / 2, 0.45 * many, 0.35 * many)[0] < 0.05)
        True
        >>> float(compute_always_valid_p(few, few, 0.9 * few, 0.7 * few)[0])
        1.0
    """
    shifted, trials, success = match_shifted_binomial(k, expected, variance, third)
    log_ratio = np.multiply.outer(shifted, np.log(BET_ODDS))
    log_ratio -= trials[:, None] * np.log1p(np.multiply.outer(success, BET_ODDS - 1.0))
    log_e = special.logsumexp(log_ratio, axis=1) - np.log(BET_ODDS.size * MATCHING_MARGIN)
    evidence = np.exp(np.clip(log_e, 0.0, np.log(MOST_EVIDENCE)))
    return np.where(has_freedom(expected, variance), 1.0 / evidence, 1.0)
