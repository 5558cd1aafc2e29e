"""The channels against real servers: HTTP for Slack and Sentry, SMTP with STARTTLS and login."""

import json
import logging
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from ipaddress import ip_address

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from werkzeug import Request, Response

from conversion_assets.alerts.channels import Result
from conversion_assets.alerts.log import LogChannel
from conversion_assets.alerts.mail import MailChannel
from conversion_assets.alerts.sentry import SentryChannel
from conversion_assets.alerts.slack import BLOCK_LIMIT, SlackChannel, build_blocks
from conversion_assets.domain.alerts import AlertKind, AlertMessage
from conversion_assets.domain.terms import HealthRule, PatternType, Severity
from conversion_assets_tests.alerting import line, link, message

HOOK = "/services/T000/B000/s3cret-t0ken"
TWO = [
    line("acme<x>"),
    line("acme<x>", HealthRule.LOW_SAMPLE, PatternType.HOW, severity=Severity.MEDIUM),
]


def slack(httpserver, **changes):
    return SlackChannel(httpserver.url_for(HOOK), link, **changes)


def answer(httpserver, *responses):
    for status, headers in responses:
        httpserver.expect_ordered_request(HOOK, method="POST").respond_with_data(
            "ok" if status == 200 else "no_service", status=status, headers=headers
        )


def test_slack_gets_a_well_formed_message_with_every_finding(httpserver):
    answer(httpserver, (200, {}))
    assert slack(httpserver).send(message(client="acme<x>", lines=TWO)).result == Result.SENT
    ((request, _),) = httpserver.log
    body = json.loads(request.data)
    assert body["text"] == "acme<x>: 1 finding open"
    assert body["blocks"][0]["type"] == "header"
    text = json.dumps(body["blocks"])
    for one in TWO:
        assert one.finding_id in text
        assert str(one.rule) in text
        assert link("acme<x>", one.pattern_type) in text
    assert "days_left -1.5" in text


@pytest.mark.parametrize(
    ("status", "headers", "result", "wait"),
    [
        (429, {"Retry-After": "30"}, Result.LATER, 30.0),
        (429, {}, Result.LATER, None),
        (429, {"Retry-After": "soon"}, Result.LATER, None),
        (500, {}, Result.LATER, None),
        (503, {"Retry-After": "5"}, Result.LATER, 5.0),
        (404, {}, Result.BLOCKED, None),
        (403, {}, Result.BLOCKED, None),
        (410, {}, Result.BLOCKED, None),
    ],
)
def test_slack_says_what_to_do_with_each_answer(httpserver, status, headers, result, wait):
    answer(httpserver, (status, headers))
    attempt = slack(httpserver).send(message())
    assert (attempt.result, attempt.retry_after_s) == (result, wait)
    assert str(status) in attempt.reason


def test_slack_takes_in_plain_words_what_it_cannot_lay_out(httpserver):
    answer(httpserver, (400, {}), (200, {}))
    assert slack(httpserver).send(message(lines=TWO)).result == Result.SENT
    second = json.loads(httpserver.log[1][0].data)
    assert "blocks" not in second
    assert all(one.finding_id in second["text"] for one in TWO)


def test_slack_refuses_for_good_only_after_plain_words(httpserver):
    answer(httpserver, (400, {}), (400, {}))
    assert slack(httpserver).send(message()).result == Result.REFUSED


def test_a_login_page_is_not_an_acceptance(httpserver):
    httpserver.expect_request(HOOK).respond_with_data("<html>log in</html>")
    assert slack(httpserver).send(message()).result == Result.LATER


def test_slack_that_does_not_answer_is_tried_later(httpserver):
    def slow(_request: Request) -> Response:
        time.sleep(2)
        return Response("ok")

    httpserver.expect_request(HOOK).respond_with_handler(slow)
    assert slack(httpserver, timeout_s=1).send(message()).result == Result.LATER


def test_nobody_listening_is_tried_later():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    attempt = SlackChannel(f"http://127.0.0.1:{port}{HOOK}", link).send(message())
    assert attempt.result == Result.LATER


def test_the_webhook_is_never_logged_nor_told(httpserver, caplog):
    caplog.set_level(logging.DEBUG)
    answer(httpserver, (500, {}))
    channel = slack(httpserver)
    attempt = channel.send(message())
    dead = SlackChannel(f"http://127.0.0.1:1{HOOK}", link).send(message())
    logged = " ".join(r.getMessage() for r in caplog.records if r.name != "werkzeug")
    for text in (logged, attempt.reason, dead.reason, channel.address_hash):
        assert "s3cret" not in text


def digest(clients):
    return AlertMessage(
        message_key="opened:digest:x",
        kind=AlertKind.OPENED,
        title=f"{clients:,} clients",
        lines=tuple(
            line(f"client-{i:06}&", rule)
            for i in range(clients)
            for rule in (HealthRule.EXPIRED, HealthRule.FAILED)
        ),
    )


@pytest.mark.parametrize("clients", [1, 21, 1000, 20_000])
def test_a_digest_stays_within_the_limits_of_slack(clients):
    blocks = build_blocks(digest(clients), link)
    assert len(blocks) <= BLOCK_LIMIT
    sections = [b["text"]["text"] for b in blocks if b["type"] == "section"]
    assert all(0 < len(text) <= 3000 for text in sections)
    assert len(blocks[0]["text"]["text"]) <= 150
    if clients <= 1000:
        everything = "\n".join(sections)
        assert all(f"client-{i:06}&amp;" in everything for i in range(clients))
    else:
        assert "more sections" in sections[-1]


def test_one_client_with_very_long_findings_stays_within_the_limits():
    lines = [line(message="<" * 4000, numbers={"n" * 3000: 1.0}) for _ in range(80)]
    blocks = build_blocks(message(client="c" * 200, lines=lines), link)
    assert len(blocks) <= BLOCK_LIMIT
    assert all(len(b["text"]["text"]) <= 3000 for b in blocks if b["type"] == "section")


def test_sentry_gets_one_event_that_a_duplicate_repeats(httpserver):
    httpserver.expect_request("/api/7/envelope/", method="POST").respond_with_json({"id": "x"})
    dsn = httpserver.url_for("/7").replace("http://", "http://publickey@")
    channel = SentryChannel(dsn, link, environment="test")
    told = message(lines=TWO)
    assert channel.send(told).result == Result.SENT
    assert channel.send(told).result == Result.SENT
    events = [json.loads(r.data.split(b"\n")[2]) for r, _ in httpserver.log]
    assert events[0]["event_id"] == events[1]["event_id"]
    assert events[0]["environment"] == "test"
    assert all(one.finding_id in events[0]["message"] for one in TWO)


@pytest.mark.parametrize(
    ("status", "result"),
    [(429, Result.LATER), (500, Result.LATER), (403, Result.BLOCKED), (400, Result.REFUSED)],
)
def test_sentry_says_what_to_do_with_each_answer(httpserver, status, result):
    httpserver.expect_request("/api/7/envelope/").respond_with_data("", status=status)
    dsn = httpserver.url_for("/7").replace("http://", "http://publickey@")
    assert SentryChannel(dsn, link, environment="test").send(message()).result == result


class Mailbox:
    """Keeps what it is given; refuses whom it is told to."""

    def __init__(self):
        self.mails = []
        self.refusal = None

    async def handle_DATA(self, _server, _session, envelope):  # noqa: N802
        if self.refusal:
            return self.refusal
        self.mails.append(envelope)
        return "250 OK"


def make_certificate(path):
    """A key and its own certificate for 127.0.0.1, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))


@pytest.fixture
def mail_server(tmp_path):
    make_certificate(tmp_path / "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    trusted = ssl.create_default_context(cafile=tmp_path / "server.pem")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    box = Mailbox()

    def log_in(_server, _session, _envelope, _mechanism, data):
        return AuthResult(success=data.password == b"p@ss word", handled=False)

    controller = Controller(
        box, hostname="127.0.0.1", port=port, tls_context=context, require_starttls=True,
        authenticator=log_in, auth_required=True,
    )  # fmt: skip
    controller.start()
    yield port, trusted, box
    controller.stop()


def mail(mail_server, password="p%40ss%20word"):
    port, trusted, _ = mail_server
    url = f"smtp://user:{password}@127.0.0.1:{port}?from=alerts@example.org"
    return MailChannel(url, "manager@example.org", link, tls=trusted)


def test_mail_goes_encrypted_and_logged_in_with_every_finding(mail_server):
    told = message(client="acme", lines=TWO)
    assert mail(mail_server).send(told).result == Result.SENT
    assert mail(mail_server).send(told).result == Result.SENT
    first, second = (
        message_from_bytes(one.content, policy=default) for one in mail_server[2].mails
    )
    assert all(one.finding_id in first.get_content() for one in TWO)
    assert (first["From"], first["To"]) == ("alerts@example.org", "manager@example.org")
    assert first["Message-ID"] == second["Message-ID"]


def test_a_wrong_password_blocks_and_is_not_told(mail_server):
    attempt = mail(mail_server, "wr0ng-s3cret").send(message())
    assert attempt.result == Result.BLOCKED
    assert "wr0ng" not in attempt.reason


def test_a_certificate_of_a_stranger_is_refused(mail_server):
    port, _, box = mail_server
    channel = MailChannel(f"smtp://user:x@127.0.0.1:{port}", "m@example.org", link)
    assert channel.send(message()).result == Result.LATER
    assert box.mails == []


@pytest.mark.parametrize(
    ("said", "result"), [("452 full", Result.LATER), ("554 no", Result.REFUSED)]
)
def test_mail_that_is_not_taken(mail_server, said, result):
    mail_server[2].refusal = said
    assert mail(mail_server).send(message()).result == result


def test_the_log_is_the_last_resort(caplog):
    assert LogChannel().send(message(lines=TWO)).result == Result.SENT
    (record,) = caplog.records
    assert all(one.finding_id in record.message for one in TWO)
    assert "\n" not in record.message
