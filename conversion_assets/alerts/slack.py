"""Slack: one incoming webhook, blocks a person can read on a telephone."""

import logging
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from slack_sdk.webhook import WebhookClient, WebhookResponse

from conversion_assets.alerts.channels import (
    SENT,
    TIMEOUT_S,
    Attempt,
    Result,
    describe_fault,
    hash_address,
)
from conversion_assets.alerts.wording import LinkMaker, word_message
from conversion_assets.domain.alerts import AlertKind, AlertLine, AlertMessage, group_by_rule
from conversion_assets.domain.terms import Severity

BLOCK_LIMIT = 50
"""Blocks Slack takes in one message."""
TEXT_LIMIT = 2900
"""Characters of one section: Slack takes 3,000, and escaping may not cross it."""
PLAIN_LIMIT = 39_000
"""Characters of a plain text: Slack cuts it at 40,000."""
HEADER_LIMIT = 150
"""Characters of a header."""

_REVOKED = (401, 403, 404, 410)
_TOO_MANY = 429
_SERVER_FAULT = 500
_EMOJI = {
    AlertKind.OPENED: ":red_circle:",
    AlertKind.STILL_OPEN: ":hourglass:",
    AlertKind.RESOLVED: ":large_green_circle:",
    AlertKind.NOTICE: ":warning:",
}


class SlackChannel:
    """Sends to an incoming webhook."""

    name = "slack"

    def __init__(self, webhook_url: str, link: LinkMaker, *, timeout_s: int = TIMEOUT_S) -> None:
        self.address_hash = hash_address(webhook_url)
        self._link = link
        self._secrets = (webhook_url, urlsplit(webhook_url).path)
        # The SDK logs the webhook's address at debug level: its logger must stay silent.
        silent = logging.Logger("slack", level=logging.CRITICAL + 1)
        # Whether and when to try again is the outbox's business: it outlives this process.
        self._client = WebhookClient(
            webhook_url,
            timeout=timeout_s,
            logger=silent,
            retry_handlers=[],
        )
        if urllib.request.proxy_bypass(urlsplit(webhook_url).hostname or ""):
            self._client.proxy = None

    def send(self, message: AlertMessage) -> Attempt:
        """Send one message."""
        attempt = self._post(message.title, build_blocks(message, self._link))
        if attempt.result == Result.REFUSED:
            # What Slack cannot lay out it may still take as plain words.
            words = f"{message.title}\n{word_message(message, self._link)}"
            attempt = self._post(escape(words)[:PLAIN_LIMIT], None)
        return attempt

    def _post(self, text: str, blocks: list[dict[str, Any]] | None) -> Attempt:
        try:
            response = self._client.send(text=text, blocks=blocks)
        except Exception as error:  # noqa: BLE001 - whatever stands in the way may pass
            return Attempt(Result.LATER, describe_fault(error, *self._secrets))
        return _judge(response)


def _judge(response: WebhookResponse) -> Attempt:
    body = " ".join((response.body or "").split())[:100]
    status = response.status_code
    said = f"HTTP {status} {body}".rstrip()
    # A page instead of Slack's plain "ok" comes from something in between, such as a login page.
    if 200 <= status < 300 and not body.startswith("<"):
        return SENT
    if status == _TOO_MANY:
        return Attempt(Result.LATER, said, _read_seconds(response.headers))
    if status in _REVOKED:
        return Attempt(Result.BLOCKED, said)
    if 400 <= status < _SERVER_FAULT and status != 408:
        return Attempt(Result.REFUSED, said)
    return Attempt(Result.LATER, said, _read_seconds(response.headers))


def _read_seconds(headers: dict[str, Any]) -> float | None:
    given = {str(name).lower(): value for name, value in headers.items()}.get("retry-after")
    given = given[0] if isinstance(given, list) else given
    return float(given) if given is not None and str(given).isdecimal() else None


def escape(text: str) -> str:
    """Return text that Slack shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def build_blocks(message: AlertMessage, link: LinkMaker) -> list[dict[str, Any]]:
    """Return a message as Slack blocks: a header, the findings, where to look.

    A message of one client names each finding with its numbers and links its asset. A digest
    lists the clients of each rule; what does not fit into Slack's limits is counted, and a hint
    names the command that lists it.
    """
    title = f"{_EMOJI[message.kind]} {message.title}"
    header = {"type": "plain_text", "text": title[:HEADER_LIMIT], "emoji": True}
    if message.client_id is None and message.lines:
        texts = _word_digest(message)
    else:
        texts = [_word_finding(line, link) for line in message.lines]
    if message.text:
        texts.append(escape(message.text))
    return [{"type": "header", "text": header}, *_fit(_merge(texts)), _word_footer(message)]


def _word_finding(line: AlertLine, link: LinkMaker) -> str:
    mark = ":red_circle:" if line.severity == Severity.HIGH else ":large_yellow_circle:"
    kind = f"{line.pattern_type} " if line.pattern_type else ""
    where = link(line.client_id, line.pattern_type)
    head = f"{mark} *<{where}|{kind}{line.rule}>* {escape(line.message)}"
    numbers = ", ".join(f"{name} {_word_number(value)}" for name, value in line.numbers.items())
    return (f"{head}\n`{escape(numbers)}`" if numbers else head)[:TEXT_LIMIT]


def _word_number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _word_digest(message: AlertMessage) -> list[str]:
    texts = []
    for rule, lines in group_by_rule(message.lines).items():
        head = f"*{rule}* ({len({line.client_id for line in lines}):,} clients): "
        names = list(dict.fromkeys(escape(line.client_id) for line in lines))
        text = head
        for position, name in enumerate(names):
            piece = name if position == 0 else f", {name}"
            if len(text) + len(piece) > TEXT_LIMIT:
                texts.append(text)
                text, piece = f"*{rule}* (continued): ", name
            text += piece[:TEXT_LIMIT]
        texts.append(text)
    return texts


def _merge(texts: list[str]) -> list[str]:
    """Join neighbours as long as they fit into one section."""
    merged: list[str] = []
    for text in texts:
        if merged and len(merged[-1]) + len(text) + 1 <= TEXT_LIMIT:
            merged[-1] += f"\n{text}"
        else:
            merged.append(text[:TEXT_LIMIT])
    return merged


def _fit(texts: list[str]) -> list[dict[str, Any]]:
    room = BLOCK_LIMIT - 2
    if len(texts) > room:
        left_out = len(texts) - room + 1
        hint = f"... and {left_out} more sections: `conversion-assets alerts list` has them all"
        texts = [*texts[: room - 1], hint]
    return [{"type": "section", "text": {"type": "mrkdwn", "text": text}} for text in texts]


def _word_footer(message: AlertMessage) -> dict[str, Any]:
    ids = [line.finding_id for line in message.lines[:20]]
    more = f" and {len(message.lines) - 20:,} more" if len(message.lines) > 20 else ""
    shown = f"findings {', '.join(ids)}{more}" if ids else message.message_key
    return {"type": "context", "elements": [{"type": "mrkdwn", "text": escape(shown)}]}
