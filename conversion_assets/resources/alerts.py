"""Alerts as a Dagster resource: the channels that the environment names, and their delivery."""

import os
import random
import socket
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from urllib.parse import quote

from dagster import ConfigurableResource, ResourceDependency
from sqlalchemy import Engine

from conversion_assets.alerts.channels import Channel
from conversion_assets.alerts.delivery import Delivery, DeliveryReport
from conversion_assets.alerts.log import LogChannel
from conversion_assets.alerts.mail import MailChannel
from conversion_assets.alerts.sentry import SentryChannel
from conversion_assets.alerts.slack import SlackChannel
from conversion_assets.alerts.wording import LinkMaker
from conversion_assets.domain.alerts import AlertKind, AlertMessage
from conversion_assets.domain.terms import PatternType
from conversion_assets.partitions import partition_key
from conversion_assets.resources.settings import SettingsResource
from conversion_assets.settings import Settings
from conversion_assets.storage.outbox import Outbox


def make_link(ui_url: str) -> LinkMaker:
    """Return what makes the address of a pattern's page in the UI."""
    base = ui_url.rstrip("/")

    def link(client_id: str, kind: PatternType | None) -> str:
        key = quote(partition_key(client_id), safe="")
        return f"{base}/assets/{kind or PatternType.WHO}_patterns?view=partitions&partition={key}"

    return link


def build_channels(settings: Settings) -> list[Channel]:
    """Return the configured channels, Slack first; the log when there is none."""
    link = make_link(settings.ui_url)
    channels: list[Channel] = []
    if settings.slack_webhook_url is not None:
        channels.append(SlackChannel(settings.slack_webhook_url.get_secret_value(), link))
    if settings.alert_email is not None and settings.smtp_url is not None:
        smtp = settings.smtp_url.get_secret_value()
        channels.append(MailChannel(smtp, settings.alert_email, link))
    if settings.sentry_dsn is not None:
        dsn = settings.sentry_dsn.get_secret_value()
        channels.append(SentryChannel(dsn, link, environment=settings.environment))
    return channels or [LogChannel()]


def list_channel_names(settings: Settings) -> list[str]:
    """Return the names of the configured channels, for which messages are queued."""
    return [channel.name for channel in build_channels(settings)]


def deliver_alerts(
    engine: Engine, channels: Sequence[Channel], *, budget_s: float | None = None
) -> DeliveryReport:
    """Send what waits, by the machine's clock; tell the other channels of one that is revoked."""
    outbox = Outbox(engine)
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    now = partial(datetime.now, UTC)
    delivery = Delivery(outbox, owner, now, time.sleep, random.random)
    if budget_s is not None:
        delivery = Delivery(outbox, owner, now, time.sleep, random.random, budget_s)
    report = delivery.deliver(channels)
    for name in report.newly_blocked:
        others = [channel.name for channel in channels if channel.name != name]
        notice = AlertMessage(
            message_key=f"notice:blocked:{name}:{now().isoformat()}",
            kind=AlertKind.NOTICE,
            title=f"alerts no longer reach {name}",
            text=f"{name} refuses every message: {report.faults[name]}. Messages wait; "
            "see docs/runbooks/channel_blocked.md",
        )
        outbox.enqueue([notice], others, now())
    return report


class AlertsResource(ConfigurableResource[Outbox]):
    """The channels of the environment; it has no config, so none can show in the UI."""

    settings: ResourceDependency[SettingsResource]

    def channel_names(self) -> list[str]:
        """Return the names of the configured channels."""
        return list_channel_names(self.settings.load())

    def deliver(self, engine: Engine) -> DeliveryReport:
        """Send what waits."""
        return deliver_alerts(engine, build_channels(self.settings.load()))

    def notify(self, engine: Engine, *, key: str, title: str, text: str) -> None:
        """Queue a notice about the installation; the same key is told once."""
        notice = AlertMessage(
            message_key=f"notice:{key}", kind=AlertKind.NOTICE, title=title, text=text
        )
        Outbox(engine).enqueue([notice], self.channel_names(), datetime.now(UTC))
