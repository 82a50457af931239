"""A network between a program and the broker that can be made to fail while it is in use."""

import enum
import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from struct import pack
from typing import Self

#: Bytes that are read at once; larger than any answer of the broker that a publish waits for.
_CHUNK = 65536


class Network(enum.Enum):
    """What becomes of what is sent from now on."""

    WORKS = "all of it arrives"
    SWALLOWS_ANSWERS = "what the broker says is lost, and nobody is told"
    SWALLOWS_ALL = "what either side says is lost, and nobody is told"
    CUTS_AT_ANSWER = "the next answer is lost, and its connection cut; then it is `afterwards`"
    ENDS_IN_A_FRAME = "of the next answer that is a `method` the beginning arrives, and nothing after it"
    SLOW = "each answer takes `delay` seconds"
    TRICKLES = "each byte of an answer takes `delay` seconds"
    NARROW = "each piece that programs say takes `delay` seconds"
    UNSTEADY = "each piece, either way, takes up to `delay` seconds, so that connections overtake each other"


class Proxy:
    """Listens on `port` of this machine, and forwards to a broker's port as `network` says."""

    def __init__(self, broker_port: int, port: int = 0) -> None:
        self.network = Network.WORKS
        self.afterwards = Network.WORKS
        #: Seconds, of the networks that take some.
        self.delay = 0.0
        #: Its class and its number, of `Network.ENDS_IN_A_FRAME`.
        self.method = (0, 0)
        #: How often each kind of network did what it does; the proof that a fault has happened.
        self.happened: Counter[Network] = Counter()
        #: Pieces that arrived before one that was sent earlier on another connection.
        self.overtook = 0
        self._on_the_way: set[int] = set()
        self._sent = 0
        self._lock = threading.Lock()
        self._broker_port = broker_port
        self._server = socket.create_server(("127.0.0.1", port))
        self._sockets = [self._server]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._unnoticed: set[socket.socket] = set()
        self.port = int(self._server.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _cut(*self._sockets)

    @property
    def first_has_ended(self) -> bool:
        """Whether a side has ended the connection that was made first."""
        return bool(self._pairs) and self._pairs[0][0].fileno() == -1

    def say(self, data: bytes) -> None:
        """Say something to the programs in the broker's name."""
        for client, _ in self._pairs:
            client.sendall(data)

    def cut_for_programs(self) -> None:
        """Cut all connections that there are, on the programs' side only: the broker does not notice."""
        pairs, self._pairs = self._pairs, []
        self._unnoticed.update(broker for _, broker in pairs)
        _cut(*(client for client, _ in pairs))

    def cut(self) -> None:
        """Cut all connections that there are; both sides notice."""
        pairs, self._pairs = self._pairs, []
        _cut(*(side for pair in pairs for side in pair))

    def cut_for_broker(self) -> None:
        """Let the broker notice what `cut_for_programs` has done."""
        unnoticed, self._unnoticed = self._unnoticed, set()
        _cut(*unnoticed)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                broker = socket.create_connection(("127.0.0.1", self._broker_port))
                self._sockets += client, broker
                self._pairs.append((client, broker))
                threading.Thread(target=self._forward, args=(client, broker, False), daemon=True).start()
                threading.Thread(target=self._forward, args=(broker, client, True), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                network = self.network
                match network, answers:
                    case (Network.SWALLOWS_ANSWERS, True) | (Network.SWALLOWS_ALL, _):
                        self.happened[network] += 1
                        continue
                    case Network.CUTS_AT_ANSWER, True:
                        self.happened[network] += 1
                        self.network = self.afterwards
                        break
                    case Network.ENDS_IN_A_FRAME, True:
                        before, method, _ = data.partition(pack(">HH", *self.method))
                        if method:
                            self.happened[network] += 1
                            self.network = Network.SWALLOWS_ANSWERS
                            data = before + method
                    case (Network.SLOW, True) | (Network.NARROW, False):
                        self.happened[network] += 1
                        time.sleep(self.delay)
                    case Network.UNSTEADY, _:
                        self.happened[network] += 1
                        self._take_a_while()
                    case Network.TRICKLES, True:
                        self.happened[network] += 1
                        self._trickle(data, target)
                        continue
                target.sendall(data)
        _cut(*({source, target} - self._unnoticed))

    def _take_a_while(self) -> None:
        with self._lock:
            self._sent += 1
            number = self._sent
            self._on_the_way.add(number)
        time.sleep(random.uniform(0, self.delay))
        with self._lock:
            self._on_the_way.remove(number)
            self.overtook += any(other < number for other in self._on_the_way)

    def _trickle(self, data: bytes, target: socket.socket) -> None:
        for byte in data:
            time.sleep(self.delay)
            target.sendall(bytes([byte]))


def _cut(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
