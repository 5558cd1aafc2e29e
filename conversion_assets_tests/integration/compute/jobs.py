"""Jobs that a worker loads from here: they count, wait, fail or kill where they run."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conversion_assets.domain.errors import InputError


@dataclass(frozen=True)
class Spell:
    """Returns its clients in capitals and notes in a folder that it ran, and where."""

    clients: tuple[str, ...]
    folder: Path
    seconds: float = 0.0
    deadly: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    greedy: frozenset[str] = frozenset()
    password: str = ""

    def __call__(self) -> list[str]:
        (self.folder / f"{self.clients[0]}-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.seconds)
        if self.deadly & set(self.clients):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.greedy & set(self.clients):
            raise MemoryError
        if self.refused & set(self.clients):
            raise InputError(f"client {min(self.refused)}: its file is damaged")
        return [client.upper() for client in self.clients]


@dataclass(frozen=True)
class MakeSpell:
    """Makes the job of a shard."""

    folder: Path
    seconds: float = 0.0
    deadly: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    greedy: frozenset[str] = frozenset()
    password: str = ""

    def __call__(self, shard: Sequence[str]) -> Spell:
        return Spell(
            tuple(shard),
            self.folder,
            self.seconds,
            self.deadly,
            self.refused,
            self.greedy,
            self.password,
        )
