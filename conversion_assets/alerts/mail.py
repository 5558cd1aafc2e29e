"""E-mail: one SMTP server, STARTTLS and login where the URL says so."""

import smtplib
import ssl
from email.message import EmailMessage
from urllib.parse import parse_qs, unquote, urlsplit

from conversion_assets.alerts.channels import (
    SENT,
    TIMEOUT_S,
    Attempt,
    Result,
    describe_fault,
    hash_address,
)
from conversion_assets.alerts.wording import LinkMaker, word_message
from conversion_assets.domain.alerts import AlertMessage

_PORTS = {"smtp": 587, "smtps": 465}
_PERMANENT = 500


class MailChannel:
    """Sends through `smtp://user:password@host:587` (STARTTLS) or `smtps://...` (TLS at once).

    A login never travels in the clear: with a user in the URL the server must offer STARTTLS.
    `?from=alerts@example.org` names the sender; without it the recipient is the sender too.
    """

    name = "email"

    def __init__(
        self,
        smtp_url: str,
        recipient: str,
        link: LinkMaker,
        *,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.address_hash = hash_address(f"{smtp_url} {recipient}")
        self._url = urlsplit(smtp_url)
        self._recipient = recipient
        self._sender = parse_qs(self._url.query).get("from", [recipient])[0]
        self._link = link
        self._tls = tls or ssl.create_default_context()
        self._timeout_s = timeout_s
        self._secrets = (smtp_url, unquote(self._url.password or ""))

    def send(self, message: AlertMessage) -> Attempt:
        """Send one message."""
        try:
            with self._connect() as server:
                self._secure(server)
                server.send_message(self._compose(message))
        except (smtplib.SMTPAuthenticationError, smtplib.SMTPNotSupportedError) as error:
            return Attempt(Result.BLOCKED, describe_fault(error, *self._secrets))
        except smtplib.SMTPRecipientsRefused as error:
            code, _ = next(iter(error.recipients.values()))
            result = Result.BLOCKED if code >= _PERMANENT else Result.LATER
            return Attempt(result, f"the recipient was refused with {code}")
        except smtplib.SMTPResponseException as error:
            permanent = (
                Result.REFUSED if isinstance(error, smtplib.SMTPDataError) else Result.BLOCKED
            )
            result = permanent if error.smtp_code >= _PERMANENT else Result.LATER
            return Attempt(result, describe_fault(error, *self._secrets))
        except Exception as error:  # noqa: BLE001 - whatever stands in the way may pass
            return Attempt(Result.LATER, describe_fault(error, *self._secrets))
        return SENT

    def _connect(self) -> smtplib.SMTP:
        host = self._url.hostname or ""
        port = self._url.port or _PORTS[self._url.scheme]
        if self._url.scheme == "smtps":
            return smtplib.SMTP_SSL(host, port, timeout=self._timeout_s, context=self._tls)
        return smtplib.SMTP(host, port, timeout=self._timeout_s)

    def _secure(self, server: smtplib.SMTP) -> None:
        server.ehlo_or_helo_if_needed()
        user = unquote(self._url.username or "")
        if self._url.scheme == "smtp" and (user or server.has_extn("starttls")):
            server.starttls(context=self._tls)  # raises where a login would be in the clear
        if user:
            server.login(user, unquote(self._url.password or ""))

    def _compose(self, message: AlertMessage) -> EmailMessage:
        mail = EmailMessage()
        mail["Subject"] = f"[conversion-assets] {' '.join(message.title.split())}"
        mail["From"] = self._sender
        mail["To"] = self._recipient
        # The same message again has the same id: mail programs show it once.
        mail["Message-ID"] = f"<{hash_address(message.message_key)}@conversion-assets>"
        mail.set_content(word_message(message, self._link))
        return mail
