"""Seconds and memory of a process with its children.

Memory is the proportional share of each process (a page that two of them share counts once), summed
over the process and everything it started, at its highest. The kernel's own peak (`ru_maxrss`) is
not used: a child's counts what its parent held when it was started.
"""

import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_LOOK_EVERY_S = 0.05
"""Reading the share of a process of 1 GB takes about 3 ms, of 10 GB 30 ms."""


@dataclass(frozen=True)
class Done:
    """What became of a process.

    Attributes:
        output: Its standard output.
        seconds: Wall seconds from start to end.
        peak_mb: Highest memory of it and its children together.
    """

    output: str
    seconds: float
    peak_mb: float


def run_measured(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, quiet: bool = True
) -> Done:
    """Run a process to its end and watch its memory and its children's.

    Args:
        command: What to run.
        environment: Changes to this process's environment.
        quiet: Keep its standard error back and show it only when it fails.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=errors if quiet else None,
        )
        with TreeWatch(child.pid) as watch:
            code = child.wait()
        seconds = time.perf_counter() - started
        output.seek(0)
        said = output.read().decode()
        if code:
            errors.seek(0)
            text = (errors.read().decode(errors="replace") or said)[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with {code}: {text}")
    return Done(said, seconds, watch.peak_mb)


class TreeWatch:
    """Watches the memory of a process and its children in a thread of this one.

    Example:
        >>> with TreeWatch(os.getpid()) as watch:
        ...     kept = bytearray(50_000_000)
        >>> watch.peak_mb > 50
        True
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb = 0.0

    def __enter__(self) -> "TreeWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        shares = sum(map(_share_mb, list_tree(self._pid)))
        # The root's own highest is exact however short it was.
        self.peak_mb = max(self.peak_mb, shares, peak_mb(self._pid))


def list_tree(pid: int) -> list[int]:
    """A process and its descendants that are alive."""
    found = [pid]
    for parent in found:
        for task in (_PROC / str(parent) / "task").glob("*/children"):
            found += map(int, _read(task).split())
    return found


def peak_mb(pid: int | None = None) -> float:
    """Highest resident memory of one living process so far; of this one by default."""
    found = re.search(r"VmHWM:\s+(\d+)", _read(_PROC / str(pid or os.getpid()) / "status"))
    return int(found[1]) / 1024 if found else 0.0


def _share_mb(pid: int) -> float:
    found = re.search(r"^Pss:\s+(\d+)", _read(_PROC / str(pid) / "smaps_rollup"), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _read(path: Path) -> str:
    """Text of a file of a process, empty when it is gone or somebody else's."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
