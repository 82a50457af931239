"""What `proj doctor` finds on a real broker, and that what it says mends it."""

import http.server
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import kombu
import psutil
import pytest
from kombu.transport.native_delayed_delivery import declare_native_delayed_delivery_exchanges_and_queues

from proj import queues
from proj.broker import BrokerNode
from tests.bundle import BIN, PATIENCE, Bundle, eventually

DOC = Path(__file__).parents[2] / "docs/migration.md"

#: Milliseconds after which the node of this module counts anew; the usual 5 seconds would be waited for.
COUNTED = 300

Findings = list[dict[str, Any]]


@pytest.fixture(scope="module")
def own_node(rabbitmq: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node for alarms, of which the other tests must not know."""
    node = BrokerNode(tmp_path_factory.mktemp("own"), extra_config=f"collect_statistics_interval = {COUNTED}")
    node.start()
    node.ctl("eval", f"application:set_env(rabbit, quorum_tick_interval, {COUNTED}).")
    yield node
    node.kill()


@pytest.fixture
def own(own_node: BrokerNode, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bundle]:
    with Bundle(own_node, vhost=re.sub(r"\W+", "-", request.node.name), folder=tmp_path) as bundle:
        yield bundle


@pytest.fixture(autouse=True)
def _node_is_not_new(request: pytest.FixtureRequest) -> None:
    """For some seconds after its start, a node does not know its memory and disk."""
    for name in {"bundle", "own"} & set(request.fixturenames):
        on = request.getfixturevalue(name)
        eventually(
            "the node knows its memory and disk",
            lambda on=on: all(
                {"mem_used", "disk_free"} <= each.keys() for each in on.management("GET", "nodes")
            ),
        )


def doctor(bundle: Bundle, env: dict[str, str] | None = None) -> Findings:
    """What the command says; its exit code is the one that fits."""
    done = bundle.proj("doctor", "--json", env=env)
    found: Findings = json.loads(done.stdout)
    assert done.returncode == any(finding["level"] == "error" for finding in found), done
    return found


def bad(found: Findings) -> list[tuple[str, str]]:
    """Level and check of what is not well."""
    return [(each["level"], each["check"]) for each in found if each["level"] not in {"ok", "info"}]


def about(found: Findings, check: str, *words: str) -> dict[str, Any]:
    """The one finding of a check that is not well, and has these words."""
    (one,) = (
        each
        for each in found
        if each["check"] == check and each["level"] != "ok" and all(word in each["what"] for word in words)
    )
    assert one["why"]
    return one


def follow(bundle: Bundle, finding: dict[str, Any]) -> None:
    """Do what the finding says mends it."""
    command = finding["fix"].rpartition(": ")[2]
    for step in command.split(" && "):
        program, *arguments = shlex.split(step)
        match program:
            case "rabbitmqctl":
                bundle.node.ctl(*arguments)
            case "curl":
                bundle.management("DELETE", urlsplit(arguments[-1]).path.removeprefix("/api/"))
            case "celery" if "worker" in arguments:
                bundle.worker(log=f"mending-{time.monotonic()}.log").ready()
            case "celery":
                done = bundle.run(BIN / "celery", *arguments)
                assert done.returncode == 0, done
            case _:
                raise AssertionError(f"nothing to run: {finding}")


def declare(bundle: Bundle) -> None:
    """The topology, as a worker would."""
    with kombu.Connection(bundle.url) as connection:
        queues.declare(connection.default_channel)
        queues.declare_delays(connection)


def seen_on_broker(bundle: Bundle) -> list[Any]:
    """What there is in the virtual host, by name."""
    return [
        sorted(each["name"] for each in bundle.of_vhost("queues")),
        sorted(each["name"] for each in bundle.of_vhost("exchanges")),
        len(bundle.of_vhost("bindings")),
        [bundle.depth(queue["name"]) for queue in bundle.of_vhost("queues") if not queue.get("exclusive")],
    ]


def results(bundle: Bundle) -> int:
    """How many results are stored."""
    with sqlite3.connect(bundle.folder / "state/results.sqlite3") as database:
        count = database.execute("SELECT COUNT(*) FROM celery_taskmeta").fetchone()[0]
    database.close()
    return int(count)


# --- All is well, or new


def test_all_is_well(bundle: Bundle) -> None:
    """With a worker on a new virtual host, nothing is in the way; guest on loopback is no matter."""
    bundle.worker().ready()
    bundle.proj("enqueue", "add", "1", "2", "--wait")
    before = seen_on_broker(bundle)

    found = doctor(bundle)

    assert bad(found) == []
    assert {tuple(finding) for finding in found} == {("area", "check", "level", "what", "why", "fix")}
    assert {finding["area"] for finding in found} == {"broker", "topology", "settings", "workers"}
    assert any("celery-" in finding["what"] and "(1)" in finding["what"] for finding in found)
    assert results(bundle) == 1
    eventually("only what was there before is there", lambda: seen_on_broker(bundle) == before)


def test_a_new_virtual_host_stays_as_it_is_until_a_worker_comes(bundle: Bundle) -> None:
    """To look makes nothing; what is missing is no error, and the worker that is asked for mends all."""
    before = seen_on_broker(bundle)

    found = doctor(bundle)
    shown = bundle.proj("doctor")

    assert seen_on_broker(bundle) == before
    assert bad(found) == [("warning", name) for name in ("queues", "queues", "delays", "present_workers")]
    # For people it is one line a finding, in groups, and a summary.
    lines = shown.stdout.splitlines()
    assert [line for line in lines if re.match(r"\w+$", line)] == [
        "Broker",
        "Topology",
        "Settings",
        "Workers",
    ]
    at = lines.index("  warning  no worker is running")
    assert lines[at + 1].startswith("           why: ")
    assert lines[at + 2].startswith("           fix: start one with: celery -A proj worker")
    assert re.fullmatch(r"\d+ ok, \d+ info, 0 skipped, 4 warning, 0 error", lines[-1])
    assert "\x1b" not in shown.stdout
    follow(bundle, about(found, "queues", "proj.dead"))
    assert bad(doctor(bundle)) == []


# --- The topology


def test_drifted_queue_and_exchange(bundle: Bundle) -> None:
    """The arguments are told side by side, or in the broker's words, and the printed commands mend them."""
    with bundle.channel() as channel:
        arguments = queues.task_queue.queue_arguments | {"x-delivery-limit": 3, "x-max-length": 9}
        channel.queue_declare("proj.tasks", durable=True, auto_delete=False, arguments=arguments)
        channel.exchange_declare("proj.dead", "direct", durable=True, auto_delete=False)

    found = doctor(bundle)
    alone = doctor(bundle, env={"PROJ_MANAGEMENT_URL": "http://127.0.0.1:1"})

    queue, exchange = about(found, "queues", "proj.tasks"), about(found, "exchanges", "proj.dead")
    assert queue["level"] == exchange["level"] == "error"
    assert "x-delivery-limit is 3, not 5, x-max-length is 9, not unset" in queue["what"]
    assert "inequivalent arg 'x-" in about(alone, "queues", "proj.tasks")["what"]
    assert "inequivalent arg 'type'" in exchange["what"]
    assert "it is empty" in queue["fix"]
    follow(bundle, queue)
    follow(bundle, exchange)
    bundle.worker().ready()
    assert bad(doctor(bundle)) == []


def test_drifted_queue_with_messages_is_not_to_be_deleted(bundle: Bundle) -> None:
    """It is to be moved."""
    with bundle.channel() as channel:
        channel.queue_declare("proj.dead", durable=True, auto_delete=False)
        kombu.Producer(channel).publish({}, routing_key="proj.dead")
        eventually("the message is there", lambda: bundle.depth("proj.dead"))

    finding = about(doctor(bundle), "queues", "proj.dead", "x-queue-type is classic, not quorum")
    assert finding["fix"] == "move its 1 messages and declare it anew, as docs/migration.md says"


@pytest.fixture
def declared(bundle: Bundle) -> Bundle:
    declare(bundle)
    return bundle


def test_what_is_unbound_or_gone_is_mended_by_a_worker(declared: Bundle) -> None:
    """Each is told by itself, and a worker's start mends all of them."""
    with declared.channel() as channel:
        channel.queue_unbind("proj.dead", "proj.dead", "#")
        channel.queue_unbind("proj.tasks", "proj", "proj.tasks")
        channel.exchange_unbind("proj", queues.DELAY_EXCHANGE, "#.proj.tasks")
    unbound = doctor(declared)
    with declared.channel() as channel:
        channel.queue_delete("celery_delayed_5")
        channel.exchange_delete("proj.dead")
    gone = doctor(declared)

    assert bad(unbound) == [
        ("error", "bindings"),
        ("error", "bindings"),
        ("error", "delay_routes"),
        ("warning", "present_workers"),
    ]
    about(unbound, "bindings", "proj.dead is not bound")
    about(unbound, "bindings", "proj.tasks is not bound")
    about(unbound, "delay_routes", "no way to proj")
    about(gone, "exchanges", "proj.dead is not there")
    finding = about(gone, "delays", "celery_delayed_5")
    follow(declared, finding)
    assert bad(doctor(declared)) == []


def test_delay_queues_of_another_application(bundle: Bundle) -> None:
    """Classic ones work, and are not as safe."""
    with kombu.Connection(bundle.url) as connection:
        queues.declare(connection.default_channel)
        declare_native_delayed_delivery_exchanges_and_queues(connection, "classic")

    finding = about(doctor(bundle), "delay_routes", "28", "classic")

    assert finding["level"] == "warning"


HARMFUL = {
    "expires": 86_400_000,
    "message-ttl": 500,
    "max-length": 1000,
    "delivery-limit": 2,
    "overflow": "drop-head",
}


def policies(
    bundle: Bundle, definition: dict[str, Any], kind: str = "policies", pattern: str = ".*"
) -> Findings:
    """What the doctor says of a policy, once the management API knows of it."""
    path = f"{kind}/{quote(bundle.vhost, safe='')}/a%20policy"
    bundle.management("PUT", path, {"pattern": pattern, "apply-to": "queues", "definition": definition})
    eventually("the policy is known", lambda: known_policies(bundle) >= {"proj.dead", "proj.tasks"})
    return [each for each in doctor(bundle) if each["check"] == "policies"]


def known_policies(bundle: Bundle) -> set[str]:
    """The queues that one is known of."""
    return {each["name"] for each in bundle.of_vhost("queues") if each.get("effective_policy_definition")}


def mended(bundle: Bundle, finding: dict[str, Any]) -> None:
    """The printed command takes the policy away."""
    follow(bundle, finding)
    eventually("no policy is known", lambda: not known_policies(bundle))
    assert bad(doctor(bundle)) == [("warning", "present_workers")]


def test_policies_that_break_the_promise(own: Bundle) -> None:
    """Each is told with the queues that it harms."""
    declare(own)
    found = policies(own, HARMFUL)

    told = {
        (each["level"], *re.findall(r"sets (\S+) to \S+ on queues? (.*)", each["what"])[0]) for each in found
    }
    assert told == {
        ("error", "expires", "proj.dead, proj.tasks, celery_delayed_0 and 27 more"),
        ("error", "message-ttl", "proj.dead"),
        ("warning", "message-ttl", "proj.tasks"),
        ("warning", "message-ttl", "celery_delayed_0, celery_delayed_1, celery_delayed_2 and 25 more"),
        ("error", "max-length", "proj.dead, proj.tasks, celery_delayed_0 and 27 more"),
        ("error", "overflow", "proj.tasks, celery_delayed_0, celery_delayed_1 and 26 more"),
        ("error", "delivery-limit", "proj.dead"),
        ("warning", "delivery-limit", "proj.tasks"),
    }
    mended(own, found[0])


def test_policies_that_do_no_harm(own: Bundle) -> None:
    """A limit that refuses is told; what the queue's own arguments win over is not."""
    declare(own)
    found = policies(own, {"max-length": 10**6, "overflow": "reject-publish", "dead-letter-exchange": "x"})

    assert [each["level"] for each in found] == ["info", "ok"]
    assert "max-length" in found[0]["what"]


def test_operator_policy(own: Bundle) -> None:
    """The command that takes it away is another one."""
    declare(own)
    (finding,) = policies(own, {"message-ttl": 5000}, "operator-policies", "proj.*dead|proj.*tasks")[:1]

    assert "clear_operator_policy" in finding["fix"]
    mended(own, finding)


# --- The settings


def test_settings_that_break_the_promise(declared: Bundle) -> None:
    """Confirms that are off, a task that outlasts the broker's patience, one that is acknowledged early."""
    declared.switch_off("config.py", '"confirm_publish": True,', "")
    declared.add_task('@app.task(name="proj.tasks.long", time_limit=7200)\ndef long() -> None: ...')
    declared.add_task('@app.task(name="proj.tasks.careless", acks_late=False)\ndef careless() -> None: ...')

    found = doctor(declared)

    assert about(found, "publishing", "confirm_publish")["level"] == "error"
    assert about(found, "time_limits", "proj.tasks.long", "7200 s", "1800 s")["level"] == "error"
    assert about(found, "tasks", "proj.tasks.careless", "acks_late=False")["level"] == "warning"
    (declared.copy_of_the_project() / "proj/tasks.py").write_text(
        (Path(queues.__file__).parent / "tasks.py").read_text()
    )
    declared.heal()
    assert bad(doctor(declared)) == [("warning", "present_workers")]


def test_result_store_that_cannot_be_written(bundle: Bundle) -> None:
    """The reason is told without the password; a good one is left as empty as it was."""
    file = bundle.folder / "state/results.sqlite3"
    file.parent.mkdir()
    file.write_text("this is no database, and longer than a header of one would be " * 10)
    url = "db+postgresql://user:s3cret@127.0.0.1:1/db"

    broken = about(doctor(bundle), "result_store", "file is not a database")
    down = about(doctor(bundle, env={"CELERY_RESULT_BACKEND": url}), "result_store", "cannot be written")
    file.unlink()
    mended = doctor(bundle)

    assert broken["level"] == down["level"] == "error"
    assert "s3cret" not in json.dumps(down)
    assert str(file) in broken["fix"]
    assert not [each for each in bad(mended) if each[0] == "error"]
    assert results(bundle) == 0


def test_passwords(bundle: Bundle) -> None:
    """What is guessed first, or travels in the open, is told, and never shown."""
    env = {
        "CELERY_BROKER_URL": "amqp://someone:admin@rabbit.invalid/;amqp://me:l0ngs3cret@rabbit2.invalid",
        "PROJ_MANAGEMENT_URL": "http://me:l0ngs3cret@rabbit.invalid",
        "CELERY_RESULT_BACKEND": "db+postgresql://user@store.invalid/db",
    }
    done = bundle.proj("doctor", "--json", env=env)
    found = json.loads(done.stdout)

    about(found, "credentials", "'someone' at rabbit.invalid is one that is guessed first")
    about(found, "credentials", "rabbit.invalid is reached over plain amqp")
    about(found, "credentials", "rabbit2.invalid is reached over plain amqp")
    about(found, "credentials", "rabbit.invalid is asked over plain http")
    assert about(found, "credentials", "no password for the database at store.invalid")["level"] == "info"
    assert "l0ngs3cret" not in done.stdout + done.stderr
    good = {
        "CELERY_BROKER_URL": "amqps://me:l0ngs3cret@rabbit.invalid",
        "PROJ_MANAGEMENT_URL": "https://h.invalid",
    }
    assert "credentials" not in [check for _, check in bad(doctor(bundle, env=good))]


# --- The broker


def test_broker_that_is_out_of_reach(bundle: Bundle) -> None:
    """It is one error, what needs it is skipped, and the rest is looked at."""
    found = doctor(bundle, env={"CELERY_BROKER_URL": "amqp://guest:guest@127.0.0.1:1"})

    assert about(found, "reachable", "no broker answers at 127.0.0.1:1")["fix"].startswith(
        "start one with: proj"
    )
    skipped = {check for level, check in bad(found) if level == "skipped"}
    assert {"version", "exchanges", "queues", "delays", "present_workers"} <= skipped
    well = {each["check"] for each in found if each["level"] == "ok"}
    assert {"publishing", "tasks", "time_limits", "result_store", "memory", "disk", "feature_flags"} <= well


def test_broker_that_refuses(bundle: Bundle) -> None:
    """The user is named, the password is not."""
    url = bundle.url.replace("guest:guest", "guest:s3cret")
    done = bundle.proj("doctor", "--json", env={"CELERY_BROKER_URL": url})

    assert done.returncode == 1
    about(json.loads(done.stdout), "reachable", "refused user 'guest'")
    assert "s3cret" not in done.stdout


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:1", "no management API answers"), ("http://guest:s3cret@{}", "refused user 'guest'")],
)
def test_management_that_cannot_be_asked(declared: Bundle, url: str, reason: str) -> None:
    """What needs it is skipped, each with the reason; the rest is looked at, and it is no error."""
    host = declared.node.management_url.removeprefix("http://")
    found = doctor(declared, env={"PROJ_MANAGEMENT_URL": url.format(host)})

    skipped = [each for each in found if each["level"] == "skipped"]
    names = (
        "management",
        "feature_flags",
        "nodes",
        "memory",
        "disk",
        "clock",
        "bindings",
        "delay_routes",
        "policies",
    )
    assert {each["check"] for each in skipped} == set(names)
    assert all(reason in each["why"] and "s3cret" not in json.dumps(each) for each in skipped)
    assert {"exchanges", "queues", "delays"} <= {each["check"] for each in found if each["level"] == "ok"}


def test_user_with_few_rights(declared: Bundle) -> None:
    """Who may see queues but no nodes is told what is missing; who may not configure, too."""
    declared.management("PUT", "users/few", {"password": "s3cret", "tags": "management"})
    rights = {"configure": "^$", "write": ".*", "read": ".*"}
    declared.management("PUT", f"permissions/{quote(declared.vhost, safe='')}/few", rights)
    host = urlsplit(declared.url).netloc.rpartition("@")[2]
    env = {"CELERY_BROKER_URL": f"amqp://few:s3cret@{host}/{quote(declared.vhost, safe='')}"}

    found = doctor(declared, env=env)

    assert "monitoring" in about(found, "memory")["fix"]
    for check in ("exchanges", "queues"):
        each = [finding for finding in found if finding["check"] == check]
        assert {(finding["level"], "access" in finding["why"].lower()) for finding in each} == {
            ("skipped", True)
        }
    assert {"bindings", "delays"} <= {each["check"] for each in found if each["level"] == "ok"}


@contextmanager
def other_clock(management_url: str, ahead: float) -> Iterator[str]:
    """The URL of a management API whose clock is wrong: the broker's own answers, with another date."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            request = urllib.request.Request(
                management_url + self.path, headers={"Authorization": self.headers["Authorization"]}
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                self.send_response_only(200)
                self.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
                self.end_headers()
                self.wfile.write(answer.read())

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("ahead", "expected"), [(-60, "60 s behind this"), (60, "60 s ahead of this")])
def test_clock_of_the_broker(bundle: Bundle, ahead: float, expected: str) -> None:
    """It is compared with this machine's."""
    with other_clock(bundle.node.management_url, ahead) as url:
        finding = about(doctor(bundle, env={"PROJ_MANAGEMENT_URL": url}), "clock", expected)

    assert finding["level"] == "warning"


def node_knows(bundle: Bundle, condition: Callable[[dict[str, Any]], bool]) -> None:
    """The management API has counted anew."""
    eventually("the node knows", lambda: condition(bundle.management("GET", "nodes")[0]))


def test_memory(own: Bundle) -> None:
    """An alarm is an error, little room a warning, and the printed command gives it more."""
    node_knows(own, lambda node: "mem_used" in node)
    own.node.ctl("set_vm_memory_high_watermark", "absolute", "100MB")
    node_knows(own, lambda node: node["mem_alarm"])
    alarm = about(doctor(own), "memory", "alarm of node proj@localhost is on")
    used = own.management("GET", "nodes")[0]["mem_used"]
    own.node.ctl("set_vm_memory_high_watermark", "absolute", str(int(used * 1.1)))
    node_knows(own, lambda node: not node["mem_alarm"] and node["mem_limit"] < used * 1.2)
    close = about(doctor(own), "memory", "raises its alarm at")

    assert alarm["level"] == "error"
    assert close["level"] == "warning"
    assert "every publish waits" in alarm["why"]
    follow(own, alarm)
    node_knows(own, lambda node: node["mem_limit"] > used * 1.2)
    assert "memory" not in [check for _, check in bad(doctor(own))]


def test_disk(own: Bundle) -> None:
    """An alarm is an error, and less than a gibibyte to it is a warning."""
    free = shutil.disk_usage(own.node.data_dir).free
    try:
        own.node.ctl("set_disk_free_limit", str(free - 2**29))
        node_knows(own, lambda node: node["disk_free_limit"] == free - 2**29)
        close = about(doctor(own), "disk", "raises its alarm below")
        own.node.ctl("set_disk_free_limit", str(free + 2**40))
        node_knows(own, lambda node: node["disk_free_alarm"])
        alarm = about(doctor(own), "disk", "alarm of node proj@localhost is on")
    finally:
        own.node.ctl("set_disk_free_limit", "50MB")

    assert alarm["level"] == "error"
    assert close["level"] == "warning"
    assert Path(shlex.split(alarm["fix"])[-1]).exists()
    node_knows(own, lambda node: not node["disk_free_alarm"])
    assert "disk" not in [check for _, check in bad(doctor(own))]


def test_frozen_broker(own: Bundle) -> None:
    """What hangs is told in bounded time."""
    os.kill(own.node.pid, signal.SIGSTOP)
    try:
        process = psutil.Process(own.node.pid)
        eventually("the broker is frozen", lambda: process.status() == psutil.STATUS_STOPPED)
        started = time.monotonic()
        found = doctor(own)
        seconds = time.monotonic() - started
    finally:
        os.kill(own.node.pid, signal.SIGCONT)
    about(found, "reachable", "does not answer in time")
    assert seconds < PATIENCE


def test_feature_flag_that_is_off(own: Bundle) -> None:
    """Without it dead letters may be lost, on 3.10 and 3.11; the printed commands switch it on."""
    if int(own.management("GET", "overview")["rabbitmq_version"].split(".")[1]) > 11:
        pytest.skip("later versions do not start without it")
    own.node.ctl("eval", "rabbit_feature_flags:mark_as_enabled_locally(stream_queue, false).")
    declare(own)

    finding = about(doctor(own), "feature_flags", "stream_queue is off")
    follow(own, finding)

    assert finding["level"] == "error"
    eventually("no policy is known", lambda: not known_policies(own))
    assert bad(doctor(own)) == [("warning", "present_workers")]
    # The queue that was declared meanwhile keeps its dead letter now, while that has nowhere to go.
    with own.channel() as channel:
        channel.queue_unbind("proj.dead", "proj.dead", "#")
        kombu.Producer(channel).publish({}, exchange="proj", routing_key="proj.tasks")
        message = eventually("the message is there", lambda: channel.basic_get("proj.tasks"))
        channel.basic_reject(message.delivery_tag, requeue=False)
    eventually("it is kept", lambda: own.of_vhost("queues", "/proj.tasks").get("messages_dlx"))


# --- The workers


def test_workers(declared: Bundle) -> None:
    """One on another machine, with another clock, with older code, or idle is told; so is a frozen one."""
    # What a worker on a machine whose clock is a minute behind would say.
    declared.add_task(
        "import celery.events.event as e\ne.Event.__defaults__ = (None, dict, lambda: time.time() - 60)"
    )
    worker = declared.worker("--hostname=w@elsewhere").ready()
    declared.add_task('@app.task(name="proj.tasks.new")\ndef new() -> None: ...')
    found = doctor(declared)

    assert bad(found) == [
        ("warning", "present_workers"),
        ("warning", "present_workers"),
        ("warning", "worker_clocks"),
    ]
    about(found, "present_workers", "w@elsewhere does not know proj.tasks.new")
    about(found, "present_workers", "other machines (elsewhere)", "SQLite")
    about(found, "worker_clocks", "w@elsewhere", "60 s behind this machine's")

    cancelled = declared.run(BIN / "celery", "-A", "proj", "control", "cancel_consumer", "proj.tasks")
    assert cancelled.returncode == 0, cancelled
    idle = about(doctor(declared), "present_workers", "none consumes queue proj.tasks")
    follow(declared, idle)
    eventually("it consumes again", lambda: len(bad(doctor(declared))) == 3)

    os.kill(worker.process.pid, signal.SIGSTOP)
    about(doctor(declared), "present_workers", "1 workers consume, and none answers")


# --- Moving the messages of a drifted queue


def test_migration(own: Bundle) -> None:
    """The commands of the documentation take every message through the change of its queue's arguments."""
    if not (shutil.which("curl") and shutil.which("bash")):
        if os.environ.get("CI") == "true":
            pytest.fail("curl is missing")
        pytest.skip("curl is missing")
    ids = [f"id-{n}" for n in range(20)]
    with kombu.Connection(own.url, transport_options={"confirm_publish": True}) as connection:
        channel = connection.default_channel
        queues.dead_queue(channel).declare()
        queues.task_exchange(channel).declare()
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 3}
        channel.queue_declare("proj.tasks", durable=True, auto_delete=False, arguments=arguments)
        for key in ("proj.tasks", "#.proj.tasks"):
            channel.queue_bind("proj.tasks", "proj", key)
        for task_id in ids:
            kombu.Producer(channel).publish(
                [[1, 2], {}, {}],
                exchange="proj",
                routing_key="proj.tasks",
                serializer="json",
                correlation_id=task_id,
                headers={"task": "proj.tasks.add", "id": task_id},
            )
    assert own.depth("proj.tasks") == len(ids)
    assert "docs/migration.md" in about(doctor(own), "queues")["fix"]
    assert own.proj("enqueue", "add", "1", "2").returncode == 69

    out, back = re.findall(r"```sh\n(.*?)```", DOC.read_text(), re.DOTALL)
    env = {
        "API": own.node.management_url.replace("://", "://guest:guest@") + "/api",
        "VHOST": quote(own.vhost, safe=""),
    }
    # The node counts more often than others.
    quick = "sleep() { command sleep 1.5; }\n"
    # What cannot be moved, for the plugin is off, is not deleted.
    assert own.run("bash", "-c", quick + out, env=env).returncode
    assert own.depth("proj.tasks") == len(ids)
    enable_shovel(own.node)
    assert "All are aside" in shell(own, quick + out, env)
    assert own.depth("proj.tasks.aside") == len(ids)
    assert not own.has("proj.tasks")
    worker = own.worker().ready()
    assert bad(doctor(own)) == []
    assert "All are back" in shell(own, quick + out.partition("curl -fs -X")[0] + back, env)

    eventually("all are executed", lambda: len(worker.lines("succeeded in")) == len(ids))
    assert {line.id for line in worker.lines("succeeded in")} == set(ids)
    assert not own.has("proj.tasks.aside")


def shell(bundle: Bundle, script: str, env: dict[str, str]) -> str:
    done = bundle.run("bash", "-c", script, env=env)
    assert done.returncode == 0, done
    return done.stdout


def enable_shovel(node: BrokerNode) -> None:
    """Switch the plugin on, as `rabbitmq-plugins enable` does."""
    from proj.broker import find_server_dir
    from proj.broker_guard import environment

    folder = find_server_dir()
    subprocess.run(
        [folder / "rabbitmq-plugins", "-q", "enable", "rabbitmq_shovel"],
        env=environment(node.info, folder),
        check=True,
        capture_output=True,
        timeout=60,
    )
