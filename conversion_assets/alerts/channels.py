"""What a channel is: it takes a message and says what became of it."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from conversion_assets.domain.alerts import AlertMessage

TIMEOUT_S = 10
"""How long a channel may take for one message; the lease of a sender is several times longer."""


class Result(StrEnum):
    """What became of a message."""

    SENT = "sent"
    LATER = "later"
    BLOCKED = "blocked"
    REFUSED = "refused"


@dataclass(frozen=True)
class Attempt:
    """What a channel said.

    Attributes:
        result: sent; later (the fault may pass, the message may even have arrived); blocked (the
            address is revoked: somebody must act); refused (this message will never be taken).
        reason: One line without secrets.
        retry_after_s: How long the channel asks to wait, where it does.
    """

    result: Result
    reason: str = ""
    retry_after_s: float | None = None


SENT = Attempt(Result.SENT)


class Channel(Protocol):
    """Somewhere a message can be sent."""

    @property
    def name(self) -> str:
        """Name in the outbox."""

    @property
    def address_hash(self) -> str:
        """Changes with the address; tells nothing about it."""

    def send(self, message: AlertMessage) -> Attempt:
        """Send one message; never raises for a fault of the network or the receiver."""


def hash_address(address: str) -> str:
    """Return a short one-way name of an address that holds a secret.

    Example:
        >>> hash_address("https://example.org/hook") == hash_address("https://example.org/other")
        False
    """
    return hashlib.sha256(address.encode()).hexdigest()[:12]


def describe_fault(error: BaseException, *secrets: str) -> str:
    """Return an error as one line without the given secrets."""
    line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    for secret in secrets:
        line = line.replace(secret, "***") if secret else line
    return line
