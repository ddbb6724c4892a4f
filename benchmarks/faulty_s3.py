"""An S3-compatible server on loopback that is slow, fails and breaks off, and corrupts nothing by itself.

What it holds is moto's. A fault meets a request before it is carried out, after it (the answer is lost), or within its
body or its answer, which then ends before its stated length, as with a connection that is cut.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Environment = dict[str, Any]
Begin = Callable[..., Any]

_BUSY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@dataclass
class Weather:
    """How a storage behaves now. Each chance is from 0 to 1, and of each request."""

    seconds: float = 0.0
    """The longest that a request is kept waiting."""
    refuses: float = 0.0
    """Answers 503 and does nothing."""
    forgets: float = 0.0
    """Does what was asked and answers 500."""
    cuts_answers: float = 0.0
    """The connection ends within the answer."""
    cuts_bodies: float = 0.0
    """The connection ends within what is sent to it; nothing of that is kept."""
    met: dict[str, int] = field(default_factory=dict)
    """Faults so far, by kind."""


class _QuietHandler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any, **__: Any) -> None:
        """Says nothing: faults are wanted here."""


class FaultyS3:
    """The server in threads of this process.

    Args:
        weather: May be changed while it runs.
        seed: Of the chances.
    """

    def __init__(self, weather: Weather, seed: int = 0) -> None:
        self.weather = weather
        self._chance, self._lock = random.Random(seed), threading.Lock()
        self._whole: Any = DomainDispatcherApplication(create_backend_app)
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_QuietHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[dict[str, str]]:
        """Meanwhile it answers; the environment that leads s3fs and boto3 to it."""
        self._thread.start()
        try:
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.port}",
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_MAX_ATTEMPTS": "1",
                "AWS_CONFIG_FILE": "/nonexistent",
                "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            }
        finally:
            self._server.shutdown()
            self._server.server_close()

    def _answer(self, environment: Environment, begin: Begin) -> Iterable[bytes]:
        weather = self.weather
        time.sleep(self._draw() * weather.seconds)
        if self._draw() < weather.cuts_bodies and int(environment.get("CONTENT_LENGTH") or 0) > 1:
            self._count("within the body")
            environment["wsgi.input"].read(int(environment["CONTENT_LENGTH"]) // 2)
            return self._hang_up(environment, begin)
        if self._draw() < weather.refuses:
            self._count("refused")
            # Else the rest of the request would be taken for the next one.
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            return self._fail(environment, begin, "503 Slow Down")
        if self._draw() < weather.forgets:
            self._count("answer lost")
            for _ in self._whole(environment, lambda *_, **__: None):
                pass
            return self._fail(environment, begin, "500 Internal Server Error")
        if self._draw() < weather.cuts_answers:
            return self._cut(environment, begin)
        return self._whole(environment, begin)

    @staticmethod
    def _fail(environment: Environment, begin: Begin, status: str) -> Iterable[bytes]:
        begin(
            status, [("Content-Type", "application/xml"), ("Content-Length", str(len(_BUSY))), ("Connection", "close")]
        )
        return [] if environment["REQUEST_METHOD"] == "HEAD" else [_BUSY]

    def _cut(self, environment: Environment, begin: Begin) -> Iterable[bytes]:
        """The first half of the true answer, under the length of the whole one."""
        told: list[Any] = []
        body = b"".join(self._whole(environment, lambda *words, **_: told.extend(words)))
        begin(told[0], [*told[1], ("Connection", "close")])
        if len(body) > 1:
            self._count("within the answer")
            return self._hang_up_after(environment, body[: len(body) // 2])
        return [body]

    def _hang_up(self, environment: Environment, begin: Begin) -> Iterable[bytes]:
        begin("200 OK", [("Content-Length", "100"), ("Connection", "close")])
        return self._hang_up_after(environment, b"")

    @staticmethod
    def _hang_up_after(environment: Environment, part: bytes) -> Iterator[bytes]:
        yield part
        environment["werkzeug.socket"].close()

    def _draw(self) -> float:
        with self._lock:
            return self._chance.random()

    def _count(self, kind: str) -> None:
        with self._lock:
            self.weather.met[kind] = self.weather.met.get(kind, 0) + 1
