"""The broker over TLS: all programs work, and one that is not the broker is refused."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from urllib.parse import quote

import pytest
import trustme

from proj.config import Settings
from proj.errors import ManagementUnavailable
from proj.private_node.node import BrokerNode
from proj.rabbitmq.management import Management
from tests.lib.bundle import BIN, Bundle
from tests.lib.one_node import CONFIG
from tests.lib.ports import free_port
from tests.lib.proxy import Network, Proxy
from tests.lib.publisher import SLACK, Publisher
from tests.lib.waiting import eventually

HOST = "127.0.0.1"

#: Seconds in which a publish ends; and that a confirm takes, longer than the first of two nodes has to greet.
TIMEOUT, SLOW = 3, 4.5


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(file))
    return file


@dataclass(frozen=True)
class Secured:
    """A RabbitMQ that speaks TLS on two more ports."""

    node: BrokerNode
    port: int
    management_port: int


@pytest.fixture(scope="module")
def secured(
    rabbitmq: None, ca: trustme.CA, ca_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    certificate = ca.issue_cert("localhost", HOST)
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    port, management_port = free_port(), free_port()
    files = {"cacertfile": ca_file, "certfile": folder / "cert.pem", "keyfile": folder / "key.pem"}
    config = [
        CONFIG,
        f"listeners.ssl.1 = {HOST}:{port}",
        "ssl_options.verify = verify_none",
        f"management.ssl.ip = {HOST}",
        f"management.ssl.port = {management_port}",
        *(
            f"{what}.{name} = {file}"
            for what in ("ssl_options", "management.ssl")
            for name, file in files.items()
        ),
    ]
    node = BrokerNode(folder / "node", extra_config="\n".join(config))
    node.start()
    yield Secured(node, port, management_port)
    node.kill()


@pytest.fixture
def own(secured: Secured, ca_file: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bundle]:
    """A bundle whose programs know the broker by its TLS ports only."""
    with Bundle(secured.node, vhost=request.node.name, folder=tmp_path) as bundle:
        bundle.env |= {
            "CELERY_BROKER_URL": url(bundle, secured.port, "localhost"),
            "PROJ_MANAGEMENT_URL": f"https://{HOST}:{secured.management_port}",
            "PROJ_BROKER_CA": str(ca_file),
        }
        yield bundle


class Impostor:
    """Between a program and a broker that is spoken to without TLS, with a certificate of its own."""

    def __init__(self, certificate: trustme.LeafCert, broker_port: int) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(self._context)
        self._broker_port = broker_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.port = 0
        #: Bytes that clients were led to say.
        self.overheard = 0
        self._writers: list[asyncio.StreamWriter] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, HOST, 0, ssl=self._context), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.gather(*(w.wait_closed() for w in self._writers), return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        self._writers.append(answer)
        broker, ask = await asyncio.open_connection(HOST, self._broker_port)
        self._writers.append(ask)
        await asyncio.gather(self._pump(client, ask, 1), self._pump(broker, answer, 0))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, overheard: int) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                self.overheard += overheard * len(data)
                target.write(data)
                await target.drain()
        target.close()


def url(bundle: Bundle, port: int, host: str = HOST, scheme: str = "amqps") -> str:
    return f"{scheme}://guest:guest@{host}:{port}/{quote(bundle.vhost, safe='')}"


def refused(bundle: Bundle, *env: dict[str, str]) -> str:
    """The line with which `proj enqueue` ends when the broker cannot be used."""
    done = bundle.proj("enqueue", "add", "1", "2", env={name: v for each in env for name, v in each.items()})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1), done
    return done.stderr


# --- It works


def test_all_programs_use_it(own: Bundle) -> None:
    """Worker, publishing now and later and many, waiting, dead letters and the management API."""
    worker = own.worker().ready()
    for options in ((), ("--countdown", "1")):
        done = own.proj("enqueue", "add", "2", "3", *options, "--wait")
        assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
    assert own.proj("enqueue", "add", "1", "1", "--expires", "60").returncode == 0
    assert own.proj("enqueue", "add", "1", "1", "--count", "30").returncode == 0
    eventually("all is executed", lambda: worker.text().count("succeeded in") == 33)
    done = own.proj("dead", "list")
    assert (done.returncode, done.stderr) == (0, "No dead letters.\n")

    assert encrypted(own) == {True}, "a program connected without TLS"


def encrypted(bundle: Bundle) -> set[bool]:
    """Whether the connections to the virtual host are encrypted; they are told late."""
    path = f"vhosts/{quote(bundle.vhost, safe='')}/connections"
    return eventually(
        "connections are told",
        lambda: {each["ssl"] for each in bundle.management("GET", path) if "ssl" in each},
    )


def test_the_management_api_is_asked_over_it(own: Bundle, secured: Secured, ca_file: Path) -> None:
    """With the same authority; without it, the answer says what to set."""

    def version(ca: Path | None) -> str:
        settings = Settings(
            celery_broker_url=own.env["CELERY_BROKER_URL"],
            proj_management_url=own.env["PROJ_MANAGEMENT_URL"],
            proj_broker_ca=ca,
        )
        return str(Management.from_settings(settings).get("overview")["rabbitmq_version"])

    assert version(ca_file)
    with pytest.raises(ManagementUnavailable, match="not from a trusted authority") as caught:
        version(None)
    assert "PROJ_BROKER_CA" in str(caught.value)


def test_authorities_of_the_system_are_trusted_by_default(own: Bundle, ca_file: Path) -> None:
    """Those that OpenSSL is told of by its own variable, here."""
    own.env["PROJ_BROKER_CA"] = ""
    assert "not from a trusted authority" in refused(own)

    assert own.proj("enqueue", "add", "1", "2", env={"SSL_CERT_FILE": str(ca_file)}).returncode == 0


def test_the_next_node_is_checked_by_its_own_name(own: Bundle, secured: Secured) -> None:
    """When the first does not answer, the name of the second is what its certificate must be for."""
    with socket.create_server((HOST, 0)) as closed:
        port = closed.getsockname()[1]
    urls = f"{url(own, port, 'gone.localhost')};{url(own, secured.port)}"

    done = own.proj("enqueue", "add", "1", "2", env={"CELERY_BROKER_URL": urls})
    assert done.returncode == 0, done.stderr


# --- One that is not the broker


def _days(count: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=count)


@pytest.mark.parametrize("impostor", ["another authority", "expired", "not yet", "another host"])
def test_a_wrong_certificate_is_refused(bundle: Bundle, ca: trustme.CA, ca_file: Path, impostor: str) -> None:
    """Before a password is sent; with the check switched off, all of them are believed."""
    certificate, reason = {
        "another authority": (trustme.CA().issue_cert(HOST), "is not from a trusted authority"),
        "expired": (ca.issue_cert(HOST, not_before=_days(-9), not_after=_days(-1)), "has expired (renew it)"),
        "not yet": (ca.issue_cert(HOST, not_before=_days(1), not_after=_days(9)), "is not valid yet"),
        "another host": (ca.issue_cert("elsewhere.example"), f"is not for '{HOST}'"),
    }[impostor]
    with Impostor(certificate, bundle.node.info.port) as between:
        bundle.env |= {"CELERY_BROKER_URL": url(bundle, between.port), "PROJ_BROKER_CA": str(ca_file)}
        assert f"the certificate of the broker at {HOST}:{between.port} {reason}" in refused(bundle)
        assert not between.overheard

        bundle.switch_off(
            "rabbitmq/transport.py",
            '{"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": host}',
            '{"cert_reqs": ssl.CERT_NONE}',
        )
        assert bundle.proj("enqueue", "add", "1", "2").returncode == 0
        assert between.overheard


def test_kombu_itself_does_not_look_at_the_name(bundle: Bundle, ca: trustme.CA, ca_file: Path) -> None:
    """Why there is a transport of our own; when this fails, kombu has learnt it."""
    with Impostor(ca.issue_cert("elsewhere.example"), bundle.node.info.port) as between:
        bundle.env |= {"CELERY_BROKER_URL": url(bundle, between.port), "SSL_CERT_FILE": str(ca_file)}
        assert f"is not for '{HOST}'" in refused(bundle)

        bundle.switch_off("rabbitmq/transport.py", '"amqps": f"', '"not-used": f"')
        # Not forked from what has told kombu of the transport.
        assert bundle.run(BIN / "proj", "enqueue", "add", "1", "2").returncode == 0


def test_a_program_that_used_tls_before_is_checked_too(bundle: Bundle) -> None:
    """What kombu has kept of the scheme does not win over the checks."""
    bundle.env["CELERY_BROKER_URL"] = "amqps://localhost"
    used = bundle.python("""
import json, kombu
kombu.Connection("amqps://localhost").get_transport_cls()
from proj import app
print(json.dumps(app.connection_for_write().get_transport_cls().__module__))
""")

    assert used == "proj.rabbitmq.transport"


def test_a_worker_ends_at_a_wrong_certificate(bundle: Bundle, ca: trustme.CA) -> None:
    """As at a wrong password: with one line, for waiting mends neither."""
    with Impostor(ca.issue_cert(HOST), bundle.node.info.port) as between:
        worker = bundle.worker(env={"CELERY_BROKER_URL": url(bundle, between.port)})
        assert worker.ends() == 69
    assert worker.text().count("is not from a trusted authority") == 1
    assert "Traceback" not in worker.text()


def test_the_other_port_is_told(own: Bundle, secured: Secured) -> None:
    """TLS to the port without it, and the other way round."""
    plain = secured.node.info.port
    line = refused(own, {"CELERY_BROKER_URL": url(own, plain)})
    assert f"TLS with the broker at {HOST}:{plain} fails" in line
    assert "amqp://" in line

    line = refused(own, {"CELERY_BROKER_URL": url(own, secured.port, scheme="amqp")})
    assert f"the broker at {HOST}:{secured.port} cannot be used" in line
    assert "amqps://" in line


# --- In bounded time


def test_a_network_that_swallows_all(own: Bundle, secured: Secured) -> None:
    """While TLS is spoken first: nothing was sent. Later: the outcome is unknown. Both in time."""
    with Proxy(secured.port) as proxy:
        env = {"CELERY_BROKER_URL": url(own, proxy.port)}
        with Publisher(own, **env) as patient:
            assert patient.publish().kind == "confirmed", "what a message needs is declared"
        with Publisher(own, **env, PROJ_PUBLISH_TIMEOUT=str(TIMEOUT)) as publisher:
            assert publisher.publish().kind == "confirmed"
            proxy.network = Network.SWALLOWS_ALL
            unknown = publisher.publish(task_id="mine")
            refused = publisher.publish()
    assert (unknown.kind, refused.kind) == ("OutcomeUnknown", "BrokerUnreachable"), (unknown, refused)
    assert "does not answer in time" in refused.text
    assert max(unknown.seconds, refused.seconds) < TIMEOUT + SLACK
    assert proxy.happened[Network.SWALLOWS_ALL]


def test_a_slow_confirm_is_waited_for(own: Bundle, secured: Secured) -> None:
    """For longer than a handshake may take, and the message is in the queue once."""
    with Proxy(secured.port) as proxy:
        proxy.delay = SLOW
        with Publisher(own, CELERY_BROKER_URL=url(own, proxy.port)) as publisher:
            assert publisher.publish().kind == "confirmed"
            proxy.network = Network.SLOW
            slow = publisher.publish()
            proxy.network = Network.WORKS
    assert slow.kind == "confirmed", slow
    assert slow.seconds >= SLOW
    assert own.depth("proj.tasks") == 2
