"""An HTTP endpoint for one page of metrics that strangers cannot wear out.

The library's server gives every connection a thread for as long as the peer likes. Here the number of connections is
bounded, and the oldest makes room for the newest: whoever holds connections open cannot keep a scrape, which takes
milliseconds, from being answered. What goes wrong with one connection ends that connection and nothing else.
"""

import contextlib
import io
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

LOOPBACK = "127.0.0.1"
MOST_CONNECTIONS = 32
SILENCE_S = 10.0
"""Longest wait for a peer that says or takes nothing."""
STOP_TIMEOUT_S = 5.0
"""Longest wait for the endpoint's thread to end."""


class Endpoint:
    """`app` at `host`, an address or name of this machine. `port` 0 picks a free one; raises OSError when the port is
    taken, or the host is none of this machine."""

    def __init__(self, app: Callable[..., Any], port: int, host: str = LOOPBACK) -> None:
        self._server = make_server(host, port, app, _Server6 if ":" in host else _Server, _Handler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop it and free its port; may be called twice."""
        self._server.shutdown()
        self._thread.join(STOP_TIMEOUT_S)
        self._server.server_close()


class _Server(WSGIServer):
    """A thread for each of the newest connections."""

    request_queue_size = 64

    def __init__(self, *args: Any) -> None:
        self._open: deque[socket.socket] = deque()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.append(request)
        if len(self._open) > MOST_CONNECTIONS:
            with contextlib.suppress(OSError):
                self._open.popleft().shutdown(socket.SHUT_RDWR)  # its thread finds the end of the stream
        thread = threading.Thread(target=self._answer, args=(request, client_address), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had
            self._end(request)

    def _answer(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(Exception):  # of this one connection: peers that leave, speak no HTTP, or say too much
            self.finish_request(request, client_address)
        self._end(request)

    def _end(self, request: Any) -> None:
        self.shutdown_request(request)
        with contextlib.suppress(ValueError):  # it made room before
            self._open.remove(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing to be told: the traceback of a peer that left is no business of the run's."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line each."""

    def get_stderr(self) -> Any:
        return io.StringIO()  # where wsgiref writes tracebacks
