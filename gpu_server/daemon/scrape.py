"""`/metrics` on a loopback port of the daemon's own: a thread takes the connections, the loop makes the text."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from gpu_server.errors import EndpointError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ANSWER_LIMIT_S = 5.0


class ScrapePort:
    """Serves GET /metrics at 127.0.0.1.

    wake: called from a thread when a scrape waits for `collect`. Raises EndpointError where the port cannot be had.
    """

    def __init__(self, port: int, wake: Callable[[], None]) -> None:
        self._waiting: deque[Future[str]] = deque()
        self._wake = wake
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        except OSError as error:
            raise EndpointError(f"cannot serve metrics at 127.0.0.1:{port}: {error.strerror}") from None
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="scrape", daemon=True)
        self._thread.start()

    def collect(self, render: Callable[[], str]) -> None:
        """Answer the scrapes that wait."""
        while self._waiting:
            self._waiting.popleft().set_result(render())

    def close(self) -> None:
        """Take no more connections."""
        self._server.shutdown()
        self._server.server_close()

    def _ask(self) -> str:
        future: Future[str] = Future()
        self._waiting.append(future)
        self._wake()
        return future.result(ANSWER_LIMIT_S)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        ask = self._ask

        class Handler(BaseHTTPRequestHandler):
            timeout = ANSWER_LIMIT_S

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    self.send_error(404)
                    return
                try:
                    body = ask().encode()
                except TimeoutError:
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Scrapes are not worth a log line."""

        return Handler
