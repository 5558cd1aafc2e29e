from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from conversion_assets.synthetic.clock import ZoneClock

ZONES = (
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Europe/Berlin",
    "UTC",
)
START = int(datetime(2025, 1, 1, tzinfo=UTC).timestamp())
END = int(datetime(2026, 1, 4, tzinfo=UTC).timestamp())


@pytest.fixture(scope="module")
def clock() -> ZoneClock:
    return ZoneClock(ZONES, START, END)


@pytest.mark.parametrize("code", range(len(ZONES)))
def test_local_time_is_that_of_the_zone_over_the_whole_year(clock, code):
    utc = np.arange(START, END, 1800 * 3 + 7)
    local = clock.to_local(np.full(len(utc), code), utc)
    zone = ZoneInfo(ZONES[code])
    for instant, seconds in zip(utc.tolist(), local.tolist(), strict=True):
        wall = datetime.fromtimestamp(instant, zone).replace(tzinfo=UTC)
        assert int(wall.timestamp()) == seconds


@pytest.mark.parametrize("code", range(len(ZONES)))
def test_there_and_back_is_the_same_but_for_skipped_and_doubled_hours(clock, code):
    local = np.arange(START, END, 1801)
    zone = np.full(len(local), code)
    back = clock.to_local(zone, clock.to_utc(zone, local))
    off = np.abs(back - local)
    assert off.max() <= 3600
    # One skipped hour a year.
    assert (off > 0).sum() <= 3
