"""What `proj doctor` finds where all is well, and where all is new."""

import re
from typing import Any

from tests.lib.bundle import Bundle
from tests.lib.findings import LIMIT, about, examine_after, finds, follow, hurry, results
from tests.lib.waiting import eventually


def seen_on_broker(bundle: Bundle) -> list[Any]:
    """What there is in the virtual host, by name."""
    return [
        sorted(each["name"] for each in bundle.of_vhost("queues")),
        sorted(each["name"] for each in bundle.of_vhost("exchanges")),
        len(bundle.of_vhost("bindings")),
        [bundle.depth(queue["name"]) for queue in bundle.of_vhost("queues") if not queue.get("exclusive")],
    ]


def test_all_is_well(bundle: Bundle) -> None:
    """With a worker on a new virtual host, nothing is in the way; guest on loopback is no matter."""
    # Whoever asks workers declares the exchange of their answers: here a worker does, before the doctor.
    bundle.worker(mingle=True).ready()
    bundle.enqueue("add", "1", "2", "--wait")
    before = seen_on_broker(bundle)

    found = finds(bundle)

    assert {tuple(finding) for finding in found} == {("area", "check", "level", "what", "why", "fix")}
    assert {finding["area"] for finding in found} == {"broker", "topology", "settings", "workers"}
    assert any("celery-" in finding["what"] and "(1)" in finding["what"] for finding in found)
    assert results(bundle) == 1
    eventually("only what was there before is there", lambda: seen_on_broker(bundle) == before)


def test_a_new_virtual_host_stays_as_it_is_until_a_worker_comes(bundle: Bundle) -> None:
    """To look makes nothing; what is missing is no error, and the worker that is asked for mends all."""
    before = seen_on_broker(bundle)

    found = finds(bundle, *(("warning", name) for name in ("queues", "queues", "delays", "present_workers")))
    shown = bundle.proj("doctor")

    assert seen_on_broker(bundle) == before
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
    finds(bundle)


def test_name_server_that_does_not_answer(bundle: Bundle) -> None:
    """The time in which hosts are looked for is bounded, whoever looks for them."""
    bundle.env |= {
        "CELERY_BROKER_URL": "amqp://someone:l0ngs3cret@broker.invalid",
        "PROJ_MANAGEMENT_URL": "http://api.invalid:15672",
        "CELERY_RESULT_BACKEND": "db+postgresql://user@store.invalid/db",
    }
    slow_resolver = f"""
import socket
look_up = socket.getaddrinfo
def slow(host, *args, **options):
    if str(host).endswith(".invalid"):
        time.sleep({LIMIT})
    return look_up(host, *args, **options)
socket.getaddrinfo = slow
"""
    hurry(bundle)
    found, seconds = examine_after(bundle, slow_resolver)

    assert seconds < LIMIT, "a look-up was waited for"
    about(found, "reachable", "broker.invalid", "does not answer in time")
    assert "does not answer in time" in about(found, "management")["why"]
