"""What the management API of a real broker answers, and what goes wrong with it."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from proj.config import Settings
from proj.errors import ManagementUnavailable
from proj.rabbitmq.management import Management
from tests.lib.bundle import Bundle


def management(bundle: Bundle, url: str | None = None) -> Management:
    settings = Settings(celery_broker_url=bundle.url, proj_management_url=url or bundle.node.management_url)
    return Management.from_settings(settings)


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """The port of a program that answers the same to everybody."""

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with peer:
                peer.recv(65536)
                peer.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def bystander() -> Iterator[str]:
    """The URL of a server that nobody is to talk to; nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        assert select.select([server], [], [], 0)[0] == [], "somebody has connected"


def test_the_broker_says_which_it_is(bundle: Bundle) -> None:
    """As the broker's own user, at the address that is set."""
    assert management(bundle).get("whoami")["name"] == "guest"


def test_things_of_the_virtual_host_are_found_by_their_names(bundle: Bundle) -> None:
    """Names are quoted, as the virtual host's may have to be."""
    with bundle.channel() as channel:
        channel.queue_declare("a queue/with%signs", durable=True, auto_delete=False)

    assert management(bundle).of_vhost("queues", "a queue/with%signs")["vhost"] == bundle.vhost
    assert [queue["name"] for queue in management(bundle).of_vhost("queues")] == ["a queue/with%signs"]


def test_what_is_not_there_is_named(bundle: Bundle) -> None:
    """A queue that does not exist is no other failure of the API."""
    with pytest.raises(ManagementUnavailable, match=r"has no 'queues/.*/gone'"):
        management(bundle).of_vhost("queues", "gone")


def test_a_wrong_password_is_told_without_it(bundle: Bundle) -> None:
    """The user is named, the password is not."""
    url = bundle.node.management_url.replace("://", "://guest:secret@")
    with pytest.raises(ManagementUnavailable, match="refused user 'guest'") as caught:
        management(bundle, url).get("overview")
    assert "secret" not in str(caught.value)


def test_an_api_that_is_off_is_told_with_the_way_to_switch_it_on(bundle: Bundle) -> None:
    """Nothing listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ManagementUnavailable, match="rabbitmq-plugins enable rabbitmq_management"):
        management(bundle, f"http://127.0.0.1:{port}").get("overview")


def test_one_that_is_off_is_passed_over(bundle: Bundle) -> None:
    """Another node of the cluster is asked, by then at once; when none answers, all are named."""
    live = bundle.node.management_url
    found = management(bundle, f"http://127.0.0.1:1;http://guest:secret@127.0.0.1:2;{live}")
    assert found.get("whoami")["name"] == "guest"
    assert found.url == live

    with pytest.raises(
        ManagementUnavailable, match=r"no .* at http://127.0.0.1:1 or http://127.0.0.1:2 \("
    ) as all_off:
        management(bundle, "http://127.0.0.1:1;http://guest:secret@127.0.0.1:2").get("overview")
    assert "secret" not in str(all_off.value)


def test_another_program_at_its_port_is_told(bundle: Bundle) -> None:
    """One that answers something else."""
    with (
        answering(b"220 mail.example ESMTP\r\n") as port,
        pytest.raises(ManagementUnavailable, match="is no management API"),
    ):
        management(bundle, f"http://127.0.0.1:{port}").get("overview")


def test_a_proxy_is_not_told_the_password(bundle: Bundle, bystander: str) -> None:
    """The broker is asked itself, whatever proxy the environment names for others."""
    done = bundle.proj("queues", env={"http_proxy": bystander, "no_proxy": ""})
    assert "from the management API" in done.stderr, done


def test_a_redirect_is_not_followed(bundle: Bundle, bystander: str) -> None:
    """Where it leads would be told the password."""
    redirect = f"HTTP/1.1 302 Found\r\nLocation: {bystander}/\r\nContent-Length: 0\r\n\r\n"
    with (
        answering(redirect.encode()) as port,
        pytest.raises(ManagementUnavailable, match="answered 302 Found"),
    ):
        management(bundle, f"http://127.0.0.1:{port}").get("overview")


@pytest.mark.parametrize(
    ("broker", "given", "expected"),
    [
        ("amqp://me:pw@rabbit:5673/v", None, ("http://rabbit:15672", "me", "pw", "v")),
        ("amqps://me:p%40w@rabbit//", None, ("https://rabbit:15671", "me", "p@w", "/")),
        (
            "amqp://a@[::1]/;amqp://b@c",
            None,
            ("http://[::1]:15672 http://c:15672", "a b", "guest guest", "/"),
        ),
        (
            "amqp://me@one/v;amqp://me@two/v",
            "http://x:1/;http://u:p@y:1",
            ("http://x:1 http://y:1", "me u", "guest p", "v"),
        ),
        ("amqp://me:pw@rabbit", "http://web/rabbit/", ("http://web/rabbit", "me", "pw", "/")),
        ("amqp://me:pw@rabbit", "http://mon:x@web:1", ("http://web:1", "mon", "x", "/")),
    ],
)
def test_where_it_is(broker: str, given: str | None, expected: tuple[str, str, str, str]) -> None:
    """Beside the broker and as its user, unless set."""
    found = Management.from_settings(Settings(celery_broker_url=broker, proj_management_url=given))
    urls, users, passwords = (
        " ".join(getattr(api, name) for api in found.apis) for name in ("url", "user", "password")
    )
    assert (urls, users, passwords, found.vhost) == expected
