"""The producers in examples/producers: each enqueues a task, in its language, and two get the reply."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import foreign
from tests.lib.bundle import Bundle
from tests.lib.missing import missing
from tests.lib.vhosts import VirtualHosts
from tests.lib.worker import Worker

ROOT = Path(__file__).parents[2]
PRODUCERS = ROOT / "examples/producers"

#: Where `.ci/run` installs amqplib, and Debian's package the Go library.
NODE_MODULES = ROOT / ".node/node_modules"
GO_SOURCES = Path("/usr/share/gocode")


def node() -> list[str]:
    if not shutil.which("node") or not (NODE_MODULES / "amqplib").is_dir():
        missing("Node.js with amqplib: npm install --prefix .node amqplib")
    return ["node"]


def go() -> list[str]:
    if not shutil.which("go") or not (GO_SOURCES / "src/github.com/rabbitmq/amqp091-go").is_dir():
        missing("Go with amqp091-go: apt-get install golang-go golang-github-rabbitmq-amqp091-go-dev")
    return ["go", "run"]


def shell() -> list[str]:
    if not shutil.which("curl"):
        missing("curl")
    return ["sh"]


INTERPRETERS = {".py": lambda: [sys.executable], ".js": node, ".go": go, ".sh": shell}


def run(bundle: Bundle, program: str, *words: str, **env: str) -> str:
    """Run a producer to its end; what it prints."""
    done = end_of(bundle, program, *words, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def end_of(bundle: Bundle, program: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """How a producer ends."""
    url = bundle.node.management_url.replace("://", "://guest:guest@")
    given = {"AMQP_URL": bundle.url, "MANAGEMENT_URL": url, "VHOST": bundle.vhost, "MESSAGE_ID": "go-1"}
    given |= {"NODE_PATH": str(NODE_MODULES), "GOPATH": str(GO_SOURCES), "GO111MODULE": "off"} | env
    command = [*INTERPRETERS[Path(program).suffix](), str(PRODUCERS / program), *words]
    return subprocess.run(
        command, env=os.environ | given, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def served(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bundle, Worker]]:
    """A virtual host with an ingest and a worker."""
    with vhosts.lend(tmp_path_factory.mktemp("served")) as bundle:
        foreign.start(bundle).consumes()
        yield bundle, bundle.worker().ready()


def test_each_is_short() -> None:
    """A page, since people copy it."""
    lengths = {path.name: len(path.read_text().splitlines()) for path in PRODUCERS.iterdir()}
    assert {"send.py", "send.js", "send.go", "send.sh", "ask.py", "ask.js"} <= lengths.keys()
    assert [name for name, length in lengths.items() if length >= 40] == []


@pytest.mark.parametrize(
    "program",
    ["send.py", "send.js", "send.sh", pytest.param("send.go", marks=pytest.mark.long)],  # compiled at first
)
def test_a_producer_sends_a_text(served: tuple[Bundle, Worker], program: str) -> None:
    bundle, worker = served
    run(bundle, program, "A", f'"{program}"', "in ü")
    worker.says(f"""Received 'A "{program}" in ü'""")


@pytest.mark.parametrize("program", ["send.py", "send.js"])
def test_a_producer_sends_a_sum(served: tuple[Bundle, Worker], program: str) -> None:
    bundle, worker = served
    number = str(list(INTERPRETERS).index(Path(program).suffix))
    run(bundle, program, "--add", "221", number)
    worker.says(f"Result of 221 + {number} is ")


@pytest.mark.parametrize("program", ["ask.py", "ask.js"])
def test_a_program_gets_its_reply(served: tuple[Bundle, Worker], program: str) -> None:
    """In a queue of its own, and over the broker's direct reply-to."""
    assert run(served[0], program, "221", "345") == "566\n"


@pytest.mark.parametrize("program", ["ask.py", "ask.js", "send.sh"])
def test_a_program_without_its_arguments(bundle: Bundle, program: str) -> None:
    """It prints its usage, and declares and sends nothing."""
    done = end_of(bundle, program)
    assert done.returncode in {1, 2}
    assert done.stderr.startswith("Usage: ")
    assert done.stderr.count("\n") == 1
    assert bundle.of_vhost("queues") == []


def test_a_thousand_messages_of_a_node_program_become_a_thousand_tasks(bundle: Bundle) -> None:
    """Sent at once, as Node.js programs do, and each is there once."""
    ingest = foreign.start(bundle).consumes()
    run(bundle, "send.js", "--add", "1", "2", COUNT="1000")
    foreign.settle(bundle, ingest, queues=("add",))
    made = foreign.tasks(bundle)
    assert len(made) == len({task_id for task_id, _ in made}) == 1000
