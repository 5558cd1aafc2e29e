"""Independent parts of one detection side by side.

Counting and the special functions of the estimates spend their time outside the interpreter's
lock, so threads use every core. Results come in the order of the parts, and each part is computed
as it would be alone: how many threads there are changes no byte.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import polars as pl

Result = TypeVar("Result")


def run_together(parts: Sequence[Callable[[], Result]]) -> list[Result]:
    """Results of some functions without arguments, in their order.

    As many run at a time as polars has threads (`POLARS_MAX_THREADS`). The first error in the
    order of the parts is raised when all of them have ended.

    Example:
        >>> run_together([lambda: 1, lambda: 2])
        [1, 2]
    """
    threads = min(pl.thread_pool_size(), len(parts))
    if threads < 2:
        return [part() for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda part: part(), parts))
