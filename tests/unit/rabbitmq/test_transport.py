"""A broker that falls silent in the middle of a frame, and what a timeout is then."""

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import amqp
import kombu
import pytest
import trustme
from amqp.exceptions import RecoverableConnectionError, UnexpectedFrame
from kombu.asynchronous import Hub

from proj.rabbitmq import transport
from tests.lib.waiting import eventually

#: A method of eight bytes, on the connection's own channel.
FRAME = b"\x01\x00\x00\x00\x00\x00\x08" + b"12345678" + b"\xce"


@contextmanager
def connected(connection: type[Any], *, tls: bool) -> Iterator[tuple[Any, socket.socket]]:
    """Such a connection, whose reads return the frame, with a timeout of 0.1 s; and its peer."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    peers: list[socket.socket] = []

    def accept() -> None:
        peer, _ = server.accept()
        peers.append(context.wrap_socket(peer, server_side=True) if tls else peer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = threading.Thread(target=accept)
        accepting.start()
        host = f"127.0.0.1:{server.getsockname()[1]}"
        options = {"cert_reqs": ssl.CERT_NONE} if tls else False
        live = connection()
        live.transport = live.Transport(host, connect_timeout=60, ssl=options, read_timeout=0.1)
        live.on_inbound_frame = lambda frame: frame
        live.transport.connect()
        accepting.join()
    with peers[0] as peer, live.sock:
        yield live, peer


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("size", [3, 7, 10, len(FRAME) - 1])
def test_timeout_in_a_frame(size: int, tls: bool) -> None:
    """It ends the read, with no timeout at all too; what was read is not lost."""
    with connected(transport.Connection, tls=tls) as (live, peer):
        peer.sendall(FRAME[:size])
        if not tls:  # whose timeout is set by kombu's transport
            with pytest.raises(TimeoutError):
                live.blocking_read()
        for timeout in (0.1, 0, 0):
            with pytest.raises(TimeoutError):
                live.blocking_read(timeout)
        assert live.connected
        peer.sendall(FRAME[size:] + FRAME)
        assert [live.blocking_read(60), live.blocking_read(60)] == [(1, 0, b"12345678")] * 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_timeout_of_a_read_is_its_own(tls: bool) -> None:
    """The next one has the usual timeout, whether a frame has come or not."""
    with connected(transport.Connection, tls=tls) as (live, peer):
        usual = live.sock.gettimeout()
        with pytest.raises(TimeoutError):
            live.blocking_read(0)
        assert live.sock.gettimeout() == usual
        peer.sendall(FRAME)
        live.blocking_read(60)
        assert live.sock.gettimeout() == usual


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_frames_that_are_read_ahead(tls: bool) -> None:
    """What came together is read at once, and is input that the socket no longer shows."""
    with connected(transport.Connection, tls=tls) as (live, peer):
        peer.sendall(FRAME * 3 + FRAME[:9])
        assert live.blocking_read(60) == (1, 0, b"12345678")
        assert live.has_frame
        assert live.blocking_read() == live.blocking_read() == (1, 0, b"12345678")
        assert not live.has_frame
        assert live.has_input
        assert live.was_read == FRAME[:9]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("size", [0, 1, 4096, 131_064, 1_000_000])
def test_frame_of_any_size(size: int, tls: bool) -> None:
    """And what comes after it."""
    body = bytes(number % 251 for number in range(size))
    with connected(transport.Connection, tls=tls) as (live, peer):
        large = b"\x03\x00\x01" + size.to_bytes(4) + body + b"\xce"
        sending = threading.Thread(target=peer.sendall, args=[large + FRAME])
        sending.start()
        assert live.blocking_read(60) == (3, 1, body)
        assert live.blocking_read(60) == (1, 0, b"12345678")
        sending.join()


def _shut_down_here(live: Any, _peer: socket.socket) -> None:
    """As a deadline that has passed does, below TLS."""
    socket.socket.shutdown(live.sock, socket.SHUT_RDWR)


def _ended_by_the_peer(_live: Any, peer: socket.socket) -> None:
    socket.socket.shutdown(peer, socket.SHUT_WR)


def _reset_by_the_peer(_live: Any, peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("before", [b"", FRAME[:9]], ids=["nothing", "a part"])
@pytest.mark.parametrize("end", [_shut_down_here, _ended_by_the_peer, _reset_by_the_peer])
def test_end_of_the_connection(end: Callable[[Any, socket.socket], None], before: bytes, tls: bool) -> None:
    """It is lost then, also in the middle of a frame, whichever error the system has for it."""
    with connected(transport.Connection, tls=tls) as (live, peer):
        peer.sendall(before)
        end(live, peer)
        with pytest.raises(OSError, check=lambda error: not isinstance(error, TimeoutError)):
            live.blocking_read(60)
        assert not live.connected


def test_what_is_no_amqp() -> None:
    """Such as from another server, whose first bytes say that the frame has a gigabyte."""
    with connected(transport.Connection, tls=False) as (live, peer):
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n")
        with pytest.raises(TimeoutError):
            live.blocking_read(0.1)
    with connected(transport.Connection, tls=False) as (live, peer):
        peer.sendall(FRAME[:-1] + b"?")
        with pytest.raises(UnexpectedFrame):
            live.blocking_read(60)


@pytest.mark.parametrize("timeout", [None, 0], ids=["wait", "loop"])
def test_handler_of_a_signal_that_reads_meanwhile(timeout: float | None) -> None:
    """What it has read is kept, before what comes then."""

    class Interrupted:
        """A socket during whose `recv` a handler reads the first bytes."""

        def recv(self, _size: int) -> bytes:
            live.was_read += FRAME[:9]
            return FRAME[9:]

        def gettimeout(self) -> None: ...

        def settimeout(self, _seconds: float | None) -> None: ...

    with connected(transport.Connection, tls=False) as (live, _):
        sock, live.transport.sock = live.sock, Interrupted()
        try:
            assert live.blocking_read(timeout) == (1, 0, b"12345678")
        finally:
            live.transport.sock = sock


@contextmanager
def looped(*, tls: bool) -> Iterator[tuple[Any, Hub, socket.socket, list[object]]]:
    """A connection and the event loop that waits for it, its peer, and the frames it handled."""
    with connected(transport.Connection, tls=tls) as (live, peer):
        loop = Hub()
        loop.call_repeatedly(0.01, lambda: None)  # a worker has timers; without any, a turn takes a second
        frames: list[object] = []

        def handle(frame: object) -> bool:
            frames.append(frame)
            return True  # it is an event

        live.on_inbound_frame = handle
        client = kombu.Connection("amqps://" if tls else "amqp://")
        client.transport.register_with_event_loop(live, loop)
        try:
            yield live, loop, peer, frames
        finally:
            loop.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("number", [1, 3, 2000])
def test_event_loop_handles_what_comes(number: int, tls: bool) -> None:
    """Many frames at a time, and one that comes in two parts."""
    with looped(tls=tls) as (_, loop, peer, frames):
        peer.sendall(FRAME * number + FRAME[:9])
        while len(frames) < number:
            loop.run_once()
        peer.sendall(FRAME[9:])
        while len(frames) < number + 1:
            loop.run_once()
        assert frames == [(1, 0, b"12345678")] * (number + 1)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("protected", [True, False], ids=["protected", "control"])
def test_event_loop_handles_what_was_read_ahead(
    monkeypatch: pytest.MonkeyPatch, protected: bool, tls: bool
) -> None:
    """What came with an answer that somebody waited for is not left until the next byte; the control's is."""
    if not protected:
        monkeypatch.delattr(transport.Connection, "drain_events")
    number = 500 if tls else 3  # TLS decrypts more than is asked for, and keeps the rest
    with looped(tls=tls) as (live, loop, peer, frames):
        peer.sendall(FRAME * number)
        live.drain_events(60)
        assert len(frames) == 1
        loop.run_once()
        assert len(frames) == (number if protected else 1)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(("takes_turns", "handled"), [(True, 1), (False, 3)])
def test_event_loop_has_its_turn_after_each_event(tls: bool, takes_turns: bool, handled: int) -> None:
    """If it takes turns: what an event causes may take long, such as a task of `-P solo`."""
    with looped(tls=tls) as (live, loop, peer, frames):
        live.takes_turns = takes_turns
        peer.sendall(FRAME * 3)
        while not frames:
            loop.run_once()
        assert len(frames) == handled
        while len(frames) < 3:
            loop.run_once()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_event_loop_learns_that_the_connection_is_lost(tls: bool) -> None:
    """At the end of what was sent, and again when somebody has noticed before."""
    with looped(tls=tls) as (live, loop, peer, frames):
        peer.sendall(FRAME)
        while not frames:
            loop.run_once()
        _shut_down_here(live, peer)
        for _ in range(2):
            with pytest.raises((OSError, RecoverableConnectionError)):
                eventually("it is noticed", loop.run_once)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_control_py_amqp_reads_again(tls: bool) -> None:
    """Its timeout does not end a read within a frame."""
    with connected(amqp.Connection, tls=tls) as (live, peer):
        wire = live.transport
        receive, reads = wire._quick_recv, count()

        def receive_or_end(size: int) -> bytes:
            if next(reads) > 1000:
                raise EOFError
            return bytes(receive(size))

        peer.sendall(FRAME[:10])
        with wire.having_timeout(60):
            wire._read_buffer = wire._read(10)
        wire._quick_recv = receive_or_end
        with pytest.raises(EOFError):
            live.blocking_read(0)


def test_tls_of_another_application_is_its_own() -> None:
    """Its certificates are not ours to change."""
    theirs = {"ca_certs": "theirs.pem", "certfile": "client.pem"}
    with kombu.Connection("amqps://127.0.0.1:1", ssl=dict(theirs)) as connection:
        assert isinstance(connection.transport, transport.Transport)
        with pytest.raises(OSError, match="refused"):
            connection.connect()
        assert connection.ssl == theirs
