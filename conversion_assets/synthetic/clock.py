"""Local wall-clock time of many zones at once, as whole seconds."""

from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from conversion_assets.domain.errors import InputError

# Every change of an offset in use falls on a whole or half hour of UTC (Lord Howe: 15:30).
_STEP = 1800
# Days beyond either end; no offset differs from UTC by more than a day.
_MARGIN_DAYS = 2

Seconds = NDArray[np.int64]


class ZoneClock:
    """Offsets from UTC of some zones between two instants.

    Zone data are those of Polars, so that whoever reads the local hour back with Polars sees the
    same hour.

    Args:
        zones: IANA names.
        start: first instant, seconds since 1970 UTC.
        end: last instant.

    Raises:
        InputError: a zone is unknown.
    """

    def __init__(self, zones: tuple[str, ...], start: int, end: int) -> None:
        self._start = (start // 86400 - _MARGIN_DAYS) * 86400
        stop = (end // 86400 + 1 + _MARGIN_DAYS) * 86400
        self._table = np.stack([_offsets(zone, self._start, stop) for zone in zones])

    def to_local(self, zone: NDArray[np.intp], utc: Seconds) -> Seconds:
        """Wall-clock seconds in the zone of each instant; shapes broadcast."""
        step = (utc - self._start) // _STEP
        return utc + self._table[zone, np.clip(step, 0, self._table.shape[1] - 1)]

    def to_utc(self, zone: NDArray[np.intp], local: Seconds) -> Seconds:
        """Instants of wall-clock seconds.

        A time that a clock change skips becomes one an hour off, a doubled time one of the two.
        """
        guess = local - (self.to_local(zone, local) - local)
        return local - (self.to_local(zone, guess) - guess)


@lru_cache(maxsize=64)
def _offsets(zone: str, start: int, stop: int) -> Seconds:
    utc = pl.Series(np.arange(start, stop, _STEP)) * 1_000_000
    instants = utc.cast(pl.Datetime("us", "UTC"))
    try:
        wall = instants.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    except pl.exceptions.ComputeError:
        raise InputError(f"zone {zone!r} is no IANA time zone such as 'Europe/Berlin'") from None
    return ((wall.cast(pl.Int64) - utc) // 1_000_000).to_numpy()
