"""Loaded by every Python process that has this folder in PYTHONPATH: sets its clock.

A deployment under test consists of several processes, and the daemon and the code server start
further ones; all of them must tell the same time, also the SQLite inside of them.
"""

import os
import sqlite3
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import grpc._channel
import grpc._server
import time_machine
from grpc._cython import cygrpc

LOOK_EVERY_S = 0.05
FILE = Path(os.environ["CONTROLLED_CLOCK"])
OWNER = Path("/proc") / os.environ["CONTROLLED_CLOCK_OWNER"]
"""The process of the tests; when it is killed, those that it started end as well."""


def read_offset() -> float:
    """How far ahead of the machine's clock everybody is, seconds."""
    return float(FILE.read_text())


def follow(traveller: time_machine.Traveller, offset: float) -> None:
    """Move this process's clock whenever the file says so."""
    while OWNER.exists():
        new = read_offset()
        if new != offset:
            traveller.shift(timedelta(seconds=new - offset))
            offset = new
        time.sleep(LOOK_EVERY_S)
    os._exit(1)


def tell_sqlite_the_time() -> None:
    """SQLite's CURRENT_TIMESTAMP, a column default of Dagster, asks the machine otherwise.

    Nor does it wait for the disk: data of tests need not survive a power cut.
    """
    connect = sqlite3.connect

    def connect_with_clock(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.create_function(
            "current_timestamp", 0, lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        )
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    sqlite3.connect = sqlite3.dbapi2.connect = connect_with_clock


def leave_grpc_its_time() -> None:
    """gRPC's core waits until moments of the machine's clock; ours would be hours away."""
    real = SimpleNamespace(**vars(time) | {"time": time_machine.escape_hatch.time.time})
    for module in (cygrpc, grpc._channel, grpc._server):
        assert module.time is time
        module.time = real


def start() -> None:
    """Set the clock and keep it set."""
    offset = read_offset()
    traveller = time_machine.travel(datetime.now(UTC) + timedelta(seconds=offset)).start()
    traveller.time_ns()  # from here on it ticks
    leave_grpc_its_time()
    tell_sqlite_the_time()
    threading.Thread(target=follow, args=(traveller, offset), daemon=True).start()


start()
