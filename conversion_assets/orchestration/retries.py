"""Which faults are worth another attempt: those of the network and of rivals, nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

from dagster import Backoff, Failure, Jitter, RetryPolicy

from conversion_assets.domain.errors import ConflictError, ConversionError, UnreachableError

RETRY_TRANSIENT = RetryPolicy(
    max_retries=4, delay=2.0, backoff=Backoff.EXPONENTIAL, jitter=Jitter.PLUS_MINUS
)
"""Waits of about 2, 6, 14 and 30 s: a restart of a database or another writer's commit."""


@contextmanager
def transient_faults_only() -> Iterator[None]:
    """Let only faults that may pass by themselves reach the retry policy.

    An unreachable service or a rival writer is tried again; anything else fails at once, an
    expected error with its one line.
    """
    try:
        yield
    except (UnreachableError, ConflictError, Failure):
        raise
    except ConversionError as error:
        raise Failure(description=str(error), allow_retries=False) from error
    except Exception as error:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise Failure(description=line, allow_retries=False) from error
