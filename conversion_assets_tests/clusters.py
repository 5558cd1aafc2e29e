"""A real cluster in small: a scheduler and workers as processes of their own on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import distributed
import psutil

ROOT = Path(__file__).parents[1]
STARTING_S = 60.0
BLAMES_AT_ONCE = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
"""A shard is suspected at the first death of a worker: where many must die, the fewest."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Cluster:
    """Processes of `dask scheduler` and `dask worker`, each ended by its own id.

    Args:
        folder: For log files and the workers' spill.
        environment: Of all of them, beside this process's own.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            # A shard is suspected after two deaths: four would only make the tests longer.
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
            "POLARS_MAX_THREADS": "2",
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }
        self.environment.pop("CONVERSION_COMPUTE_URL", None)
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
            )

    def start_scheduler(self) -> None:
        self.scheduler = self._start(
            "scheduler",
            "distributed.cli.dask_scheduler",
            *("--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard", "--no-show"),
        )
        self._wait_for_scheduler()

    def _wait_for_scheduler(self) -> None:
        end = time.monotonic() + STARTING_S
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log("scheduler"))

    def start_workers(self, count: int, *options: str) -> None:
        for _ in range(count):
            self.workers.append(
                self._start(
                    f"worker-{len(self.workers)}",
                    "distributed.cli.dask_worker",
                    self.address,
                    *("--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard"),
                    *("--death-timeout", "60", "--local-directory", str(self.folder)),
                    *options,
                )
            )

    def wait_for_workers(self, count: int) -> None:
        with distributed.Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=STARTING_S)

    def wait_until_idle(self, seconds: float = STARTING_S) -> None:
        """Until the scheduler has given nothing out and no worker holds anything.

        Both are asked: a worker ends what it has begun although the scheduler has cancelled it.
        """
        end = time.monotonic() + seconds
        with distributed.Client(self.address, set_as_default=False) as client:
            while any(client.processing().values()) or any(client.run(_count_tasks).values()):
                assert time.monotonic() < end, self.logs()
                time.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def computing(self, worker: int) -> psutil.Process:
        """The process that computes: a nanny's child, or the worker itself."""
        process = psutil.Process(self.workers[worker].pid)
        children = [c for c in process.children() if "spawn_main" in " ".join(c.cmdline())]
        return children[0] if children else process

    def kill_workers(self) -> None:
        """End all of them at once, with their nannies."""
        for worker in self.workers:
            _kill(worker)
        self.workers.clear()

    def kill_scheduler(self) -> None:
        assert self.scheduler is not None
        _kill(self.scheduler)
        self.scheduler = None

    def stop(self) -> None:
        self.kill_workers()
        if self.scheduler is not None:
            self.kill_scheduler()


def _count_tasks(dask_worker: distributed.Worker) -> int:
    return len(dask_worker.state.tasks)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """A process and what it started: each is the head of a session of its own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
