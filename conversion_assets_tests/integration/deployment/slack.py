"""A receiver of Slack messages on the loopback interface, as strict as Slack is."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class SlackReceiver:
    """Keeps every message in the order of arrival."""

    def __init__(self) -> None:
        self.messages: list[dict] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                message = json.loads(body)
                check_message(message)
                receiver.messages.append(message)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/services/T0/B0/secret"

    @contextmanager
    def listening(self):
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def titles(self) -> list[str]:
        return [message["text"] for message in self.messages]


def check_message(message: dict) -> None:
    """Slack's limits; a message beyond them would be answered with 400."""
    assert set(message) <= {"text", "blocks"}
    assert message["text"]
    blocks = message["blocks"]
    assert 1 <= len(blocks) <= 50
    assert blocks[0]["type"] == "header"
    assert 0 < len(blocks[0]["text"]["text"]) <= 150
    for block in blocks[1:]:
        assert block["type"] in ("section", "context")
        for text in block.get("elements", [block.get("text")]):
            assert text["type"] == "mrkdwn"
            assert 0 < len(text["text"]) <= 3000


def read_text(message: dict) -> str:
    """All words of a message."""
    return "\n".join(
        text["text"]
        for block in message["blocks"]
        for text in block.get("elements", [block.get("text")])
    )
