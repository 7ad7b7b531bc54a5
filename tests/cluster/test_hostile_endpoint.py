"""Strangers at the driver's Prometheus endpoint: the next scrape is answered, whatever the last connection was."""

import contextlib
import resource
import socket
import threading
import urllib.request
from collections.abc import Iterator
from random import Random

import pytest
from hostile import SCRAPS, damaged

from cluster.endpoint import MOST_CONNECTIONS
from cluster.metrics import Metrics

WAIT_S = 30.0
GOOD = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/plain\r\nAccept-Encoding: gzip\r\n\r\n"
METHODS = b"GET HEAD POST PUT DELETE OPTIONS TRACE CONNECT PATCH get PRI BREW \0 \xff".split(b" ")
TARGETS = [
    b"/metrics", b"/", b"*", b"", b"//", b"/../../etc/passwd", b"http://example.org/", b"/metrics?name[]=x", b"/%00",
    b"/metrics?" + b"name[]=a&" * 5000, b"/" + b"a" * 70_000, b"/?\r\nX: y", b"\xc3\x28", b"/favicon.ico", b"/;sh",
]  # fmt: skip
VERSIONS = b"HTTP/1.1 HTTP/1.0 HTTP/0.9 HTTP/2.0 HTTP/9.9 HTTP/1 HTTP/a.b HTTP/-1.1 http/1.1 \xff".split(b" ")
HEADERS = [
    b"", b"Host: x\r\n", b"Content-Length: 99999999999\r\n", b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n", b"X: " + b"a" * 70_000 + b"\r\n", b"X: y\r\n" * 500, b"no colon\r\n", b": empty\r\n",
    b" x\r\n", b"Accept: " + b"a/b;q=9," * 2000 + b"\r\n", b"Accept-Encoding: \xff\r\n",
    b"Accept: application/openmetrics-text; version=9\r\n",
    b"X: \0\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"Range: bytes=0-1\r\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def metrics() -> Iterator[Metrics]:
    with contextlib.closing(Metrics()) as metrics:
        metrics.observe_epoch({"epoch": 7})
        yield metrics


def connected(metrics: Metrics) -> socket.socket:
    return socket.create_connection(("127.0.0.1", metrics.port), WAIT_S)


def said(metrics: Metrics, request: bytes) -> bytes:
    """The answer, up to the end of the stream or to where the peer was cut off."""
    answer = b""
    with connected(metrics) as peer, contextlib.suppress(OSError):
        with contextlib.suppress(OSError):
            peer.sendall(request)
            peer.shutdown(socket.SHUT_WR)
        while part := peer.recv(65536):
            answer += part
    return answer


def flood(peer: socket.socket, start: bytes) -> None:
    """128 MiB."""
    peer.sendall(start)
    for _ in range(2**11):
        peer.sendall(b"a" * 2**16)


def scrape(metrics: Metrics) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=WAIT_S) as page:
        assert page.status == 200
        assert b"\ntailrace_epoch 7.0\n" in page.read()


def threads() -> int:
    return threading.active_count()


def test_garbage(metrics, capfd):
    rng, answers = Random(21), []
    for number in range(300):
        kind = rng.choice(("damaged", "built", "scraps", "bytes"))
        if kind == "damaged":
            request = damaged(GOOD, rng)
        elif kind == "built":
            line = b" ".join((rng.choice(METHODS), rng.choice(TARGETS), rng.choice(VERSIONS)))
            request = line + b"\r\n" + b"".join(rng.choices(HEADERS, k=rng.randint(0, 3))) + b"\r\n"
        elif kind == "scraps":
            request = b"".join(rng.choices(SCRAPS, k=5))
        else:
            request = rng.randbytes(rng.choice((1, 100, 100_000)))
        answers.append(said(metrics, request))
        if number % 20 == 0:
            scrape(metrics)
    scrape(metrics)
    assert len(answers) == 300
    assert sum(b"tailrace_epoch" in answer or b"\x1f\x8b" in answer for answer in answers) > 20
    assert sum(b"Error code: 4" in answer for answer in answers) > 20
    assert not any(b"Traceback" in answer or b"/cluster/" in answer for answer in answers)
    assert capfd.readouterr() == ("", "")


def test_only_reading_is_allowed(metrics):
    for method in (b"POST", b"PUT", b"DELETE", b"PATCH"):
        assert b" 405 " in said(metrics, method + b" /metrics HTTP/1.1\r\nHost: x\r\n\r\n")[:20]


def test_peers_that_leave_without_a_word_or_an_ear(metrics, capfd):
    for number in range(100):
        peer = connected(metrics)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset instead of an end
        peer.sendall(GOOD[: number % len(GOOD)] if number % 3 else GOOD)
        peer.close()
    scrape(metrics)
    assert capfd.readouterr() == ("", "")


def test_more_silent_peers_than_connections_leave_room_for_a_scrape(metrics):
    """And a thread for each of the newest only."""
    before = threads()
    with contextlib.ExitStack() as stack:
        for number in range(4 * MOST_CONNECTIONS):
            peer = stack.enter_context(connected(metrics))
            peer.sendall(GOOD[: number % 40])  # never a whole request
            if number % 16 == 0:
                scrape(metrics)
        scrape(metrics)
        assert threads() <= before + MOST_CONNECTIONS + 1
    scrape(metrics)


def test_an_endless_request_is_cut_off_and_takes_no_memory(metrics):
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in (b"GET /", b"GET / HTTP/1.1\r\nX: ", b""):
        with connected(metrics) as peer, pytest.raises(ConnectionError):
            flood(peer, start)
    scrape(metrics)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


def test_it_listens_on_the_loopback_address_alone(metrics):
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.2", metrics.port), WAIT_S)
    with socket.socket() as probe:
        probe.bind(("127.0.0.3", metrics.port))  # free on every other address


def test_a_port_that_is_taken_is_told_and_a_closed_one_is_free(metrics):
    with pytest.raises(OSError, match="in use"):
        Metrics(metrics.port)
    other = Metrics()
    other.close()
    other.close()
    with contextlib.closing(Metrics(other.port)) as again:
        assert again.port == other.port
