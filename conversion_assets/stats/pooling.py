"""What other clients say about a cell, with each client left out of its own pool."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# The pool's lift is itself shrunk towards 1 as if 20 expected conversions had shown no effect.
POOL_PRIOR_CONVERSIONS = 20.0


class PooledLift(NamedTuple):
    """Pooled lift of each row and what it rests on, shapes (rows,).

    Attributes:
        lift: Pooled lift; NaN where there is no pool.
        contributors: Other clients with an expected count in the cell.
        largest_share: Largest share of one contributor in what was pooled.
        excess: Share of what was pooled beyond everything the others have: above 0 only if the
            client's own count went in.
    """

    lift: Floats
    contributors: Ints
    largest_share: Floats
    excess: Floats


def compute_pool_lift(
    k: Floats,
    expected: Floats,
    cell: Ints,
    cells: int,
    *,
    minimum_contributors: int,
    maximum_share: float,
) -> Floats:
    """Leave-one-out pooled lift of each row's cell over the other contributing clients.

    A row is one client's count in one cell (a dimension's value). A contributor's weight is its
    expected count, cut so that nobody holds more than `maximum_share` of the pool a client sees.

    Args:
        k: Conversions of each client in each cell, shape (rows,).
        expected: Expected conversions under no effect, shape (rows,).
        cell: Cell of each row, 0..cells-1, shape (rows,); at most one row per client and cell.
        cells: Number of cells.
        minimum_contributors: With fewer other clients there is no pool.
        maximum_share: Largest share of one contributor, in (0, 1].

    Returns:
        Pooled lift for each row, shape (rows,); NaN where there is no pool.

    Example:
        >>> lift = compute_pool_lift(np.full(7, 20.0), np.full(7, 10.0), np.zeros(7, dtype=int), 1,
        ...                          minimum_contributors=5, maximum_share=0.25)
        >>> round(float(lift[0]), 3)
        1.75
    """
    return pool_counts(
        k,
        expected,
        cell,
        cells,
        minimum_contributors=minimum_contributors,
        maximum_share=maximum_share,
    ).lift


def pool_counts(
    k: Floats,
    expected: Floats,
    cell: Ints,
    cells: int,
    *,
    minimum_contributors: int,
    maximum_share: float,
) -> PooledLift:
    """Pooled lift as `compute_pool_lift` with what shows that nobody can be read off it.

    Args: see `compute_pool_lift`.

    Example:
        >>> told = pool_counts(np.full(7, 20.0), np.full(7, 10.0), np.zeros(7, dtype=int), 1,
        ...                    minimum_contributors=5, maximum_share=0.25)
        >>> int(told.contributors[0]), round(float(told.largest_share[0]), 3)
        (6, 0.167)
    """
    if k.size == 0:
        return PooledLift(k.copy(), np.zeros(0, np.int64), k.copy(), k.copy())
    cap = _cap_without_self(expected, cell, cells, maximum_share)
    # Cutting a contributor's weight keeps its own ratio k / expected. The cut depends on who is
    # left out, so it is summed as: uncut total minus what the few largest lose.
    lost_weight, lost_k = _sum_of_cuts(k, expected, cell, cells, cap=cap, share=maximum_share)
    of_others = np.bincount(cell, expected, cells)[cell] - expected
    total_expected = of_others - lost_weight
    total_k = np.bincount(cell, k, cells)[cell] - k - lost_k
    others = np.bincount(cell, (expected > 0).astype(np.float64), cells)[cell] - (expected > 0)
    lift = (np.maximum(total_k, 0.0) + POOL_PRIOR_CONVERSIONS) / (
        np.maximum(total_expected, 0.0) + POOL_PRIOR_CONVERSIONS
    )
    pooled = np.maximum(total_expected, 1e-12)
    return PooledLift(
        lift=np.where(others >= minimum_contributors, lift, np.nan),
        contributors=others.astype(np.int64),
        largest_share=np.minimum(_find_largest_other(expected, cell, cells), cap) / pooled,
        excess=np.maximum(total_expected - of_others, 0.0) / pooled,
    )


def _find_largest_other(expected: Floats, cell: Ints, cells: int) -> Floats:
    """Largest expected count among the other rows of each row's cell."""
    two = _largest(expected, cell, cells, 2)[cell]
    other = np.where(two[:, 0] == np.arange(cell.size), two[:, 1], two[:, 0])
    return np.where(other >= 0, expected[np.maximum(other, 0)], 0.0)


def _largest(expected: Floats, cell: Ints, cells: int, top: int) -> NDArray[np.intp]:
    """Row numbers of the `top` largest contributors of each cell, -1 where fewer, (cells, top)."""
    order = np.lexsort((np.arange(cell.size), -expected, cell))
    starts = np.searchsorted(cell[order], np.arange(cells))
    sizes = np.bincount(cell, minlength=cells)
    position = starts[:, None] + np.arange(top)[None, :]
    rows = order[np.minimum(position, cell.size - 1)]
    return np.where(np.arange(top)[None, :] < sizes[:, None], rows, -1)


def _cap_without_self(expected: Floats, cell: Ints, cells: int, share: float) -> Floats:
    """Largest weight a contributor may have in the pool that each row's client sees."""
    top = int(np.ceil(1.0 / share))
    largest = _largest(expected, cell, cells, top + 1)[cell]
    weight = np.where(largest >= 0, expected[np.maximum(largest, 0)], 0.0)
    weight[largest == np.arange(cell.size)[:, None]] = 0.0
    weight = -np.sort(-weight, axis=1)
    remaining = np.bincount(cell, expected, cells)[cell] - expected
    cap = np.full(cell.size, np.inf)
    # If the j largest are cut, each of them holds exactly `share`: cap = share (j cap + the rest).
    for j in range(top):
        candidate = share * remaining / (1.0 - share * j) if share * j < 1.0 else np.inf
        fits = np.isinf(cap) & (weight[:, j] <= candidate)
        cap = np.where(fits, candidate, cap)
        remaining = remaining - weight[:, j]
    return cap


def _sum_of_cuts(
    k: Floats, expected: Floats, cell: Ints, cells: int, *, cap: Floats, share: float
) -> tuple[Floats, Floats]:
    """Weight and conversions that the largest contributors lose in each row's pool."""
    lost_weight, lost_k = np.zeros(k.size), np.zeros(k.size)
    largest = _largest(expected, cell, cells, int(np.ceil(1.0 / share)) + 1)[cell]
    for j in range(largest.shape[1]):
        row = largest[:, j]
        counts = (row >= 0) & (row != np.arange(k.size))
        weight = np.where(counts, expected[np.maximum(row, 0)], 0.0)
        cut = np.where(weight > cap, weight - cap, 0.0)
        lost_weight += cut
        lost_k += np.where(
            cut > 0, k[np.maximum(row, 0)] * cut / np.where(weight > 0, weight, 1), 0
        )
    return lost_weight, lost_k
