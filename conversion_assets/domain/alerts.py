"""What an alert says, before any channel gives it a form."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from conversion_assets.domain.terms import HealthRule, PatternType, Severity


class AlertKind(StrEnum):
    """Why a message is sent."""

    OPENED = "opened"
    STILL_OPEN = "still_open"
    RESOLVED = "resolved"
    NOTICE = "notice"


class AlertLine(BaseModel):
    """One finding within a message."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finding_id: str
    client_id: str
    pattern_type: PatternType | None
    rule: HealthRule
    severity: Severity
    message: str
    numbers: dict[str, Any] = {}
    first_seen_at: datetime


class AlertMessage(BaseModel):
    """One message: about one client, about many (a digest), or about the installation (a notice).

    Attributes:
        message_key: The same text is never queued twice; a duplicate after an ambiguous time-out
            carries the same key.
        kind: Why it is sent.
        client_id: The client; None for a digest and a notice.
        title: One line.
        lines: The findings; empty for a notice.
        text: More words of a notice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    message_key: str
    kind: AlertKind
    client_id: str | None = None
    title: str
    lines: tuple[AlertLine, ...] = ()
    text: str = ""

    @property
    def severity(self) -> Severity:
        """The worst of the findings; a notice is high."""
        mild = self.lines and all(line.severity == Severity.MEDIUM for line in self.lines)
        return Severity.MEDIUM if mild else Severity.HIGH


_WORDS = {
    AlertKind.OPENED: "{n} open",
    AlertKind.STILL_OPEN: "{n} still open",
    AlertKind.RESOLVED: "resolved",
    AlertKind.NOTICE: "",
}


def compose_messages(
    kind: AlertKind,
    by_client: Sequence[tuple[str, Sequence[AlertLine]]],
    *,
    event_key: str,
    digest_clients: int,
) -> list[AlertMessage]:
    """Return one message per client, or one digest over all where there are too many.

    Args:
        kind: Why they are sent.
        by_client: Clients with their findings; a client without any gets no message.
        event_key: What makes this event different from an earlier one of the same findings, for
            example its time.
        digest_clients: More clients than this make a digest.

    Example:
        >>> compose_messages(AlertKind.OPENED, [], event_key="t", digest_clients=20)
        []
    """
    told = [(client, tuple(lines)) for client, lines in by_client if lines]
    if len(told) > digest_clients:
        words = _WORDS[kind].format(n=f"{sum(len(lines) for _, lines in told):,} findings")
        return [
            AlertMessage(
                message_key=f"{kind}:digest:{event_key}",
                kind=kind,
                title=f"{len(told):,} clients: {words}",
                lines=tuple(line for _, lines in told for line in lines),
            )
        ]
    return [
        AlertMessage(
            message_key=f"{kind}:client:{client}:{event_key}",
            kind=kind,
            client_id=client,
            title=f"{client}: {_WORDS[kind].format(n=_count(len(lines)))}",
            lines=lines,
        )
        for client, lines in told
    ]


def _count(findings: int) -> str:
    return f"{findings} finding{'' if findings == 1 else 's'}"


def group_by_rule(lines: Iterable[AlertLine]) -> dict[HealthRule, list[AlertLine]]:
    """Return the lines by rule, the rule with the most lines first."""
    groups: dict[HealthRule, list[AlertLine]] = defaultdict(list)
    for line in lines:
        groups[line.rule].append(line)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))
