"""A list of addresses, the first of which leads nowhere: every program goes on to the next."""

import socket
from collections.abc import Iterator

import pytest

from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost


@pytest.fixture(params=["refuses", "is silent"])
def first(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a node that is down, or hangs: the system accepts its connections, and nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if request.param == "refuses":
            server.close()
        yield port


def test_programs_go_to_the_next_address(bundle: Bundle, first: int) -> None:
    """A worker, a publisher, a beat and ingest; none prints a password."""
    bundle.env["CELERY_BROKER_URL"] = f"{bundle.url_at(first)};{bundle.url}"
    worker = bundle.worker()
    beat = bundle.beat()
    ingest = bundle.start("ingest", log="ingest.log")
    done = bundle.proj("enqueue", "add", "2", "3", "--wait")

    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
    beat.says("this beat leads")
    worker.ready()
    log = bundle.folder / "ingest.log"
    eventually("ingest is connected", lambda: "connected to" in log.read_text(), seen=log.read_text)
    assert ingest.poll() is None
    assert "guest:guest" not in worker.text() + beat.text() + log.read_text() + done.stderr
