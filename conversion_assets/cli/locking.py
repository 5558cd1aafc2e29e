"""One `learn`, and one backfill of a client, at a time on a home."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conversion_assets.domain.errors import ConflictError


@contextmanager
def hold_home(home: Path, work: str = "learn", lock: str = "learn.lock") -> Iterator[None]:
    """Hold a lock of the home; the system releases it with the process, however that ends.

    Args:
        home: The home.
        work: What the lock is for, in the refusal.
        lock: Its file in the home.

    Raises:
        ConflictError: another process holds it; nothing was changed.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / lock).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ConflictError(
                f"another {work} is at work on {home} (process {holder}); "
                "wait for it to end and start again"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
