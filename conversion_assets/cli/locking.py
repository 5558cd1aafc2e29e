"""One `learn` at a time on a home."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conversion_assets.domain.errors import ConflictError


@contextmanager
def hold_home(home: Path) -> Iterator[None]:
    """Hold the home's lock; the system releases it with the process, however that ends.

    Raises:
        ConflictError: another process holds it; nothing was changed.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "learn.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ConflictError(
                f"another learn is at work on {home} (process {holder}); "
                "wait for it to end and start again"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
