"""Messages as plain text, for channels and terminals that know no more."""

from collections.abc import Callable

from conversion_assets.domain.alerts import AlertLine, AlertMessage, group_by_rule
from conversion_assets.domain.terms import PatternType

LinkMaker = Callable[[str, PatternType | None], str]
"""Address of the page about a client's pattern in the UI."""


def word_line(line: AlertLine) -> str:
    """Return one finding as a line; its id is what `conversion-assets alerts ack` takes."""
    kind = f"{line.pattern_type} " if line.pattern_type else ""
    return f"[{line.severity}] {kind}{line.rule}: {line.message} ({line.finding_id})"


def word_message(message: AlertMessage, link: LinkMaker) -> str:
    """Return a whole message as plain text; nothing is left out."""
    if message.text:
        return message.text
    if message.client_id is not None:
        parts = [word_line(line) for line in message.lines]
        parts += list(
            dict.fromkeys(link(line.client_id, line.pattern_type) for line in message.lines)
        )
        return "\n".join(parts)
    parts = []
    for rule, lines in group_by_rule(message.lines).items():
        parts.append(f"{rule} ({len(lines):,}):")
        parts += [f"  {line.client_id} {word_line(line)}" for line in lines]
    return "\n".join(parts)
