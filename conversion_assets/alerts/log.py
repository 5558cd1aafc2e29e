"""The channel of last resort: a line in the log, when nobody configured another."""

import logging

from conversion_assets.alerts.channels import SENT, Attempt
from conversion_assets.alerts.wording import word_line
from conversion_assets.domain.alerts import AlertMessage

_LOG = logging.getLogger("conversion_assets.alerts")


class LogChannel:
    """Writes each message as one line: the title, then the findings."""

    name = "log"
    address_hash = "log"

    def send(self, message: AlertMessage) -> Attempt:
        """Log one message."""
        lines = "; ".join(f"{line.client_id} {word_line(line)}" for line in message.lines)
        _LOG.warning("%s: %s", message.title, " ".join((message.text or lines).split()))
        return SENT
