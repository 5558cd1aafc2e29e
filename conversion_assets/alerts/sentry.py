"""Sentry: one event per message, sent in this process so that its fate is known."""

import urllib.request
import uuid
from typing import Any
from urllib.error import HTTPError

from sentry_sdk.envelope import Envelope
from sentry_sdk.utils import Dsn

from conversion_assets.alerts.channels import (
    SENT,
    TIMEOUT_S,
    Attempt,
    Result,
    describe_fault,
    hash_address,
)
from conversion_assets.alerts.wording import LinkMaker, word_message
from conversion_assets.domain.alerts import AlertKind, AlertMessage
from conversion_assets.domain.terms import Severity

_REVOKED = (401, 403, 404, 410)
_TEXT_LIMIT = 8000
"""Characters of an event's message: Sentry cuts it at 8,192."""


class SentryChannel:
    """Sends events to the project of a DSN.

    The SDK's own client sends in the background and tells nobody whether it arrived; here its
    parsing and its wire format are used, and the request is ours.
    """

    name = "sentry"

    def __init__(
        self, dsn: str, link: LinkMaker, *, environment: str, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.address_hash = hash_address(dsn)
        parsed = Dsn(dsn)
        self._auth = parsed.to_auth("conversion-assets")
        self._secrets = (dsn, parsed.public_key or "")
        self._link = link
        self._environment = environment
        self._timeout_s = timeout_s

    def send(self, message: AlertMessage) -> Attempt:
        """Send one event; the same message again is the same event to Sentry."""
        envelope = Envelope()
        envelope.add_event(self._compose(message))
        request = urllib.request.Request(  # noqa: S310 - settings take http(s) only
            self._auth.get_api_url(),
            data=envelope.serialize(),
            headers={
                "Content-Type": "application/x-sentry-envelope",
                "X-Sentry-Auth": self._auth.to_header(),
            },
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s):  # noqa: S310
                return SENT
        except HTTPError as error:
            return _judge(error)
        except Exception as error:  # noqa: BLE001 - whatever stands in the way may pass
            return Attempt(Result.LATER, describe_fault(error, *self._secrets))

    def _compose(self, message: AlertMessage) -> Any:
        high = message.severity == Severity.HIGH and message.kind != AlertKind.RESOLVED
        return {
            "event_id": uuid.uuid5(uuid.NAMESPACE_URL, message.message_key).hex,
            "level": "error" if high else "info",
            "logger": "conversion_assets.alerts",
            "platform": "python",
            "environment": self._environment,
            "message": f"{message.title}\n{word_message(message, self._link)}"[:_TEXT_LIMIT],
            # One issue per client; what belongs to nobody groups by its kind.
            "fingerprint": ["conversion-assets", message.client_id or message.kind],
            "tags": {
                "client_id": message.client_id or "",
                "kind": str(message.kind),
                "finding_id": message.lines[0].finding_id if message.lines else "",
            },
        }


def _judge(error: HTTPError) -> Attempt:
    said = f"HTTP {error.code}"
    given = error.headers.get("Retry-After", "")
    wait = float(given) if given.isdecimal() else None
    if error.code == 429 or error.code >= 500 or error.code == 408:
        return Attempt(Result.LATER, said, wait)
    return Attempt(Result.BLOCKED if error.code in _REVOKED else Result.REFUSED, said)
