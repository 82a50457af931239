"""A broker that is out of reach, mute, wrong about the time, or short of something is found."""

import http.server
import json
import os
import re
import shlex
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import pytest

from tests.lib.alarm import SET_DISK, SET_MEMORY
from tests.lib.bundle import MANAGEMENT_OFF, Bundle
from tests.lib.erlang import evaluate
from tests.lib.findings import LIMIT, Findings, about, bad, doctor, finds, follow, hurry, known_policies
from tests.lib.serving import serving
from tests.lib.waiting import PATIENCE, eventually

pytestmark = pytest.mark.used_vhost


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
        "replicas",
    )
    assert {each["check"] for each in skipped} == set(names)
    assert all(reason in each["why"] and "s3cret" not in json.dumps(each) for each in skipped)
    assert {"exchanges", "queues", "delays"} <= {each["check"] for each in found if each["level"] == "ok"}


def test_user_with_few_rights(declared: Bundle) -> None:
    """Who may see queues but no nodes is told what is missing; who may not declare hears it from the API."""
    declared.management("PUT", "users/few", {"password": "s3cret", "tags": "management"})
    rights = {"configure": "^$", "write": ".*", "read": ".*"}
    declared.management("PUT", f"permissions/{quote(declared.vhost, safe='')}/few", rights)
    host = urlsplit(declared.url).netloc.rpartition("@")[2]
    env = {"CELERY_BROKER_URL": f"amqp://few:s3cret@{host}/{quote(declared.vhost, safe='')}"}

    found = doctor(declared, env=env)

    assert "monitoring" in about(found, "memory")["fix"]
    assert {"exchanges", "queues", "bindings", "delays"} <= {
        each["check"] for each in found if each["level"] == "ok"
    }
    for finding in of_topology(doctor(declared, env=env | MANAGEMENT_OFF)):
        assert (finding["level"], "access" in finding["why"].lower()) == ("skipped", True)
    with declared.channel() as channel:
        channel.queue_delete("proj.dead")
        channel.queue_declare("proj.dead", durable=True, auto_delete=False)
        channel.exchange_delete("proj")
        channel.exchange_declare("proj", "direct", durable=True, auto_delete=False)
    drifted = doctor(declared, env=env)
    assert "type is direct, not topic" in about(drifted, "exchanges")["what"]
    assert "x-queue-type is classic, not quorum" in about(drifted, "queues")["what"]


def of_topology(found: Findings) -> Findings:
    """What is found of exchanges and queues."""
    return [finding for finding in found if finding["check"] in {"exchanges", "queues"}]


@contextmanager
def other_clock(management_url: str, ahead: float) -> Iterator[str]:
    """The URL of a management API whose clock is wrong: the broker's own answers, with another date."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            request = urllib.request.Request(
                management_url + self.path, headers={"Authorization": self.headers["Authorization"]}
            )
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                self.send_response_only(200)
                self.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
                self.end_headers()
                self.wfile.write(answer.read())

        def log_message(self, *_: Any) -> None: ...

    with serving(Handler) as url:
        yield url


def test_management_that_falls_silent(declared: Bundle) -> None:
    """What is not answered in time once is not waited for again."""
    asked: list[str] = []
    ended = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/api/whoami":
                self.send_response_only(200)
                self.end_headers()
                self.wfile.write(b"{}")
            else:
                asked.append(self.path)
                ended.wait(PATIENCE)

        def log_message(self, *_: Any) -> None: ...

    with serving(Handler) as url:
        found = doctor(declared, env={"PROJ_MANAGEMENT_URL": url})
        ended.set()

    assert len(asked) == 1
    for check in ("feature_flags", "nodes", "memory", "disk", "clock"):
        assert "does not answer in time" in about(found, check)["why"]


@pytest.mark.parametrize(("ahead", "word"), [(-60, "behind"), (60, "ahead of")])
def test_clock_of_the_broker(bundle: Bundle, ahead: float, word: str) -> None:
    """It is compared with this machine's."""
    with other_clock(bundle.node.management_url, ahead) as url:
        finding = about(doctor(bundle, env={"PROJ_MANAGEMENT_URL": url}), "clock", f"s {word} this machine's")

    assert finding["level"] == "warning"
    # HTTP tells whole seconds, and the answer was on its way, for long on a busy machine.
    assert abs(int(re.findall(r"(\d+) s", finding["what"])[0]) - 60) < 30


def node_knows(bundle: Bundle, condition: Callable[[dict[str, Any]], bool]) -> None:
    """The management API has counted anew."""
    eventually("the node knows", lambda: condition(bundle.management("GET", "nodes")[0]))


def test_memory(own: Bundle) -> None:
    """An alarm is an error, little room a warning, and the printed command gives it more."""
    node_knows(own, lambda node: "mem_used" in node)
    evaluate(own.node, SET_MEMORY + '({absolute, "100MB"})')
    node_knows(own, lambda node: node["mem_alarm"])
    alarm = about(doctor(own), "memory", "alarm of node proj@localhost is on")
    used = own.management("GET", "nodes")[0]["mem_used"]
    evaluate(own.node, SET_MEMORY + f"({{absolute, {int(used * 1.1)}}})")
    node_knows(own, lambda node: not node["mem_alarm"] and node["mem_limit"] < used * 1.2)
    close = about(doctor(own), "memory", "raises its alarm at")

    assert alarm["level"] == "error"
    assert close["level"] == "warning"
    assert "every publish times out" in alarm["why"]
    follow(own, alarm)
    node_knows(own, lambda node: node["mem_limit"] > used * 1.2)
    assert "memory" not in [check for _, check in bad(doctor(own))]


def test_memory_of_no_limit_at_all(own: Bundle) -> None:
    """A watermark of 0, with which people stop all publishing by hand, is an alarm like any other."""
    node_knows(own, lambda node: "mem_used" in node)
    evaluate(own.node, SET_MEMORY + "(0)")
    node_knows(own, lambda node: node["mem_alarm"] and not node["mem_limit"])
    alarm = about(doctor(own), "memory", "alarm of node proj@localhost is on")

    assert alarm["level"] == "error"
    follow(own, alarm)
    node_knows(own, lambda node: not node["mem_alarm"])


def test_disk(own: Bundle) -> None:
    """An alarm is an error, and less than a gibibyte to it is a warning."""
    free = shutil.disk_usage(own.node.data_dir).free
    try:
        evaluate(own.node, f"{SET_DISK}({free - 2**29})")
        node_knows(own, lambda node: node["disk_free_limit"] == free - 2**29)
        close = about(doctor(own), "disk", "raises its alarm below")
        evaluate(own.node, f"{SET_DISK}({free + 2**40})")
        node_knows(own, lambda node: node["disk_free_alarm"])
        alarm = about(doctor(own), "disk", "alarm of node proj@localhost is on")
    finally:
        evaluate(own.node, f'{SET_DISK}("50MB")')

    assert alarm["level"] == "error"
    assert close["level"] == "warning"
    assert Path(shlex.split(alarm["fix"])[-1]).exists()
    node_knows(own, lambda node: not node["disk_free_alarm"])
    assert "disk" not in [check for _, check in bad(doctor(own))]


def test_frozen_broker(own: Bundle) -> None:
    """What hangs is told in bounded time."""
    hurry(own)
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
    assert seconds < LIMIT


def test_feature_flag_that_is_off(own: Bundle) -> None:
    """Without it dead letters may be lost, on 3.10 and 3.11; the printed commands switch it on."""
    major, minor = own.management("GET", "overview")["rabbitmq_version"].split(".")[:2]
    if (int(major), int(minor)) >= (3, 12):
        # It cannot be off: such a node would not start.
        flags = {flag["name"]: flag for flag in own.management("GET", "feature-flags")}
        assert (flags["stream_queue"]["state"], flags["stream_queue"]["stability"]) == ("enabled", "required")
        return
    evaluate(own.node, "rabbit_feature_flags:mark_as_enabled_locally(stream_queue, false)")
    own.declare()

    finding = about(doctor(own), "feature_flags", "stream_queue is off")
    follow(own, finding)

    assert finding["level"] == "error"
    eventually("no policy is known", lambda: not known_policies(own))
    finds(own, ("warning", "present_workers"))
    # The queue that was declared meanwhile keeps its dead letter now, while that has nowhere to go.
    with own.channel() as channel:
        channel.queue_unbind("proj.dead", "proj.dead", "#")
        own.publish({}, exchange="proj", routing_key="proj.tasks")
        message = channel.basic_get("proj.tasks")
        channel.basic_reject(message.delivery_tag, requeue=False)
    eventually("it is kept", lambda: own.of_vhost("queues", "/proj.tasks").get("messages_dlx"))
