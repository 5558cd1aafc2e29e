"""How a job travels to a worker, and how its outcome comes back.

The engine sees an opaque parcel: its log lines and pages show neither what a job carries nor what
it raised. The worker compares versions before it opens a parcel, since another version of the code
would give other bytes, or fail in a place that says nothing.
"""

import hashlib
import pickle
import platform
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conversion_assets.domain.errors import ConversionError

PACKAGE = Path(__file__).parents[1]

COMPUTING = ("polars", "numpy", "scipy")
"""Packages whose version can move the last bit of a figure."""


Versions = tuple[tuple[str, str], ...]
"""Name and version of each thing that must be the same on both sides."""


class Parcel:
    """A pickled job; shows nothing of it."""

    def __init__(self, job: object, versions: Versions) -> None:
        self.data = pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
        self.versions = versions

    def __repr__(self) -> str:
        return f"<parcel of {len(self.data):,} bytes>"


@dataclass(frozen=True, repr=False)
class Reply:
    """Outcome of a parcel; exactly one of the three is given.

    Attributes:
        result: What the job returned.
        error: What it raised.
        mismatch: How the worker differs from who sent the parcel.
        lacks_memory: The job asked for more memory than there is.
    """

    result: Any = None
    error: BaseException | None = None
    mismatch: str | None = None
    lacks_memory: bool = False

    def __repr__(self) -> str:
        return "<reply>"


@lru_cache(maxsize=1)
def describe_versions() -> Versions:
    """What must be the same on both sides: this package's sources, Python, what computes.

    Read once per process: files that are replaced under a running worker do not change what it has
    imported.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode())
        digest.update(path.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    return (
        ("conversion_assets", digest.hexdigest()[:12]),
        ("Python", python),
        *((name, version(name)) for name in COMPUTING),
    )


def open_parcel(parcel: Parcel) -> Reply:
    """Run a job where this function is called; nothing is raised, so that nothing is logged."""
    here = describe_versions()
    if here != parcel.versions:
        pairs = zip(here, parcel.versions, strict=False)
        differing = [f"{a[0]} {a[1]} instead of {b[1]}" for a, b in pairs if a != b]
        return Reply(mismatch=", ".join(differing))
    try:
        return Reply(result=pickle.loads(parcel.data)())  # noqa: S301 - from our own coordinator
    except MemoryError:
        return Reply(lacks_memory=True)
    except Exception as error:  # noqa: BLE001 - raised again by the coordinator
        return Reply(error=make_portable(error))


def make_portable(error: Exception) -> Exception:
    """The same error without its causes and frames, or its text where it cannot be pickled."""
    line = " ".join(str(error).split())
    try:
        copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - just pickled here
    except Exception:  # noqa: BLE001 - whatever its class does when it is pickled
        return RuntimeError(f"{type(error).__name__}: {line}")
    if isinstance(error, ConversionError) or type(copied) is type(error):
        return copied  # type: ignore[no-any-return]
    return RuntimeError(f"{type(error).__name__}: {line}")
