"""Stopping a learning run at a known place: some clients are stored, one waits."""

from contextlib import contextmanager

import psycopg
from sqlalchemy import Engine, text

from conversion_assets.storage.database import write_transaction
from conversion_assets_tests.integration.deployment.services import wait_for

HELD_CLIENT = "client-0004"
_KEY = 4711


def install_gate(engine: Engine) -> None:
    """Let every insert of one client's pattern pass a lock."""
    statements = [
        "CREATE FUNCTION pass_gate() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN PERFORM pg_advisory_xact_lock_shared({_KEY}); RETURN NEW; END$$",
        "CREATE TRIGGER gate BEFORE INSERT ON conversion_patterns FOR EACH ROW "
        f"WHEN (NEW.client_id = '{HELD_CLIENT}') EXECUTE FUNCTION pass_gate()",
    ]
    with write_transaction(engine) as connection:
        for statement in statements:
            connection.execute(text(statement))


class Gate:
    """The lock, held by this process."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("SELECT pg_advisory_lock(%s)", [_KEY])

    def wait_until_reached(self) -> None:
        """Wait until a run stands before it."""
        query = "SELECT count(*) FROM pg_locks WHERE objid = %s AND NOT granted"
        wait_for("a run at the gate", lambda: self._connection.execute(query, [_KEY]).fetchone()[0])

    def open(self) -> None:
        """Let everybody pass."""
        self._connection.close()


@contextmanager
def closed_gate(url: str):
    """A gate that is open again at the end, whatever happens."""
    gate = Gate(url)
    try:
        yield gate
    finally:
        gate.open()
