"""Evidence that stays honest when the same question is asked again every week.

An e-value is a bet against "no effect" that gains nothing on average when there is none: however
often and whenever one looks, the chance that it ever reaches 1 / a is at most a (Ville). Its
reciprocal is therefore a p-value that repeated looking cannot wear out.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]

# Lifts that the bet is spread over, evenly: effects worth acting on, in both directions. Smaller
# ones would need more data than clients have; larger ones are caught by these.
BET_LIFTS: Floats = np.array([1 / 3, 0.5, 2 / 3, 0.8, 1.25, 1.5, 2.0, 3.0])


def compute_always_valid_p(k: Floats, expected: Floats, variance: Floats) -> Floats:
    """p-values that remain valid when the data grow and are looked at again and again.

    The likelihood ratio of a lift against none, averaged over `BET_LIFTS`, for a count whose null
    distribution is the binomial with this mean and variance (as in `multiplicity`).

    Args:
        k: Observed conversions, shape (cells,).
        expected: Mean of the count under the null, shape (cells,).
        variance: Its variance under the null, shape (cells,).

    Returns:
        min(1, 1 / e), shape (cells,); 1 where the null leaves no freedom. Benjamini and Hochberg's
        procedure on these is the e-BH procedure, valid under any dependence.

    Source:
        Johari, Pekelis & Walsh 2017 (mixture sequential test); Wang & Ramdas 2022 (e-BH).

    Example:
        >>> many = np.array([40.0]); few = np.array([4.0])
        >>> bool(compute_always_valid_p(many, many / 2, many / 2 * 0.9)[0] < 0.05)
        True
        >>> float(compute_always_valid_p(few, few, few * 0.9)[0])
        1.0
    """
    free = (variance > 0) & (expected > 0)
    mean = np.where(free, expected, 1.0)
    success = np.clip(1.0 - np.where(free, variance, 0.5) / mean, 1e-9, 1.0 - 1e-9)
    trials = mean / success
    # A lift beyond certainty is no bet; it is held just below.
    raised = np.minimum(BET_LIFTS[None, :] * success[:, None], 1.0 - 1e-9)
    misses = np.maximum(trials - k, 0.0)[:, None]
    log_ratio = k[:, None] * np.log(raised / success[:, None]) + misses * (
        np.log1p(-raised) - np.log1p(-success)[:, None]
    )
    log_e = special.logsumexp(log_ratio, axis=1) - np.log(BET_LIFTS.size)
    return np.where(free, np.exp(-np.maximum(log_e, 0.0)), 1.0)
