"""The numbers of docs/metrics.md are there, under these names, and move when there is trouble."""

import math
import re
import urllib.request
from pathlib import Path
from urllib.parse import quote

from prometheus_client.parser import text_string_to_metric_families

from tests.flower.conftest import Site
from tests.lib.alarm import alarm
from tests.lib.bundle import GATED_TASK, Bundle
from tests.lib.erlang import count_often
from tests.lib.flower import LOGIN
from tests.lib.waiting import PATIENCE, eventually

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/metrics.md").read_text()
RULES = (ROOT / "deploy/prometheus/rules.yml").read_text()

#: The number that each of the five sections begins with.
NUMBERS = dict(re.findall(r"^### \d\. (.+)\n\n```promql\n(.+)\n```", DOCS, re.MULTILINE))

#: The endpoint of the queues' numbers, without its virtual host.
PATH, FAMILIES = re.findall(r"`/metrics(/detailed)\?vhost=/(&[^`]+)`", DOCS)[0]

#: A name of a metric, and the labels that it must have.
SELECTOR = re.compile(r"\b((?:rabbitmq|flower)_\w+)(?:\{([^}]*)\})?")

Samples = list[tuple[str, dict[str, str], float]]


def parse(text: str) -> Samples:
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def of_rabbitmq(bundle: Bundle) -> Samples:
    url = bundle.node.info.metrics_url
    samples: Samples = []
    for address in (url, f"{url}{PATH}?vhost={quote(bundle.vhost, safe='')}{FAMILIES}"):
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            samples += parse(answer.read().decode())
    # It reports the channels of other virtual hosts too.
    return [sample for sample in samples if sample[1].get("vhost", bundle.vhost) == bundle.vhost]


def value(query: str, samples: Samples) -> float:
    """What the first selector of a query selects, added up; not a number when it selects nothing.

    RabbitMQ knows a queue before it has numbers of it.
    """
    match = SELECTOR.search(query)
    assert match, query
    wanted = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or "")).items()
    found = [number for name, labels, number in samples if name == match[1] and wanted <= labels.items()]
    return sum(found) if found else math.nan


def number(title: str, bundle: Bundle) -> float:
    return value(NUMBERS[title], of_rabbitmq(bundle))


def reaches(title: str, expected: float, bundle: Bundle) -> None:
    """RabbitMQ's metrics are late."""
    eventually(f"{title} becomes {expected:g}", lambda: number(title, bundle) == expected)


def test_every_name_of_the_page_exists(site: Site) -> None:
    """With its labels, as those of the alerts, at the endpoints that the page names."""
    site.bundle.enqueue("add", "1", "2", "--wait")
    site.bundle.enqueue("task", "proj.tasks.fail")
    assert len(NUMBERS) == 5
    names = {match[0] for match in SELECTOR.finditer(DOCS + RULES) if match[1] != "rabbitmq_prometheus"}
    assert len(names) > len(NUMBERS)

    def missing() -> list[str]:
        samples = of_rabbitmq(site.bundle) + parse(site.flower.get("/metrics", LOGIN).text)
        return [name for name in names if math.isnan(value(name, samples))]

    eventually("every name is found", lambda: missing() == [])


def test_waiting_messages_and_workers(bundle: Bundle) -> None:
    """Without a worker messages wait; with one they do not, and it is counted."""
    count_often(bundle)
    bundle.enqueue("add", "1", "2", "--count", "2")
    reaches("Waiting messages", 2, bundle)
    reaches("Workers", 0, bundle)

    bundle.worker().ready()
    reaches("Waiting messages", 0, bundle)
    reaches("Workers", 1, bundle)


def test_dead_letters_and_failures(site: Site) -> None:
    """A task that fails is a dead letter for RabbitMQ, and an event for Flower."""
    (failures,) = re.findall(r'(flower_events_total\{type="task-failed"\})', DOCS)

    def failed() -> float:
        count = value(failures, parse(site.flower.get("/metrics", LOGIN).text))
        return 0 if math.isnan(count) else count

    site.bundle.enqueue("add", "1", "2", "--wait")
    eventually("the queue has numbers", lambda: number("Dead letters", site.bundle) >= 0)
    dead, events = number("Dead letters", site.bundle), failed()
    site.bundle.enqueue("task", "proj.tasks.fail")
    eventually("the failure is an event", lambda: failed() == events + 1)
    eventually("there is one dead letter more", lambda: number("Dead letters", site.bundle) > dead)


def test_slots_and_redeliveries(bundle: Bundle) -> None:
    """A slot that works holds a message; when its worker is killed, the message is delivered again."""
    acknowledged = selector("rabbitmq_detailed_channel_messages_acked_total")
    redelivered = selector("rabbitmq_detailed_channel_messages_redelivered_total")
    count_often(bundle)
    bundle.add_task(GATED_TASK)
    worker = bundle.worker().ready()
    bundle.enqueue("task", "proj.tasks.gated", '"a gate"', "--id", "long")
    worker.started("long")
    reaches("Slots that are stuck", 1, bundle)
    worker.kill()
    bundle.worker(log="second.log").ready().started("long")
    (bundle.folder / "a gate").touch()

    def counted() -> list[float]:
        samples = of_rabbitmq(bundle)
        return [value(redelivered, samples), value(acknowledged, samples)]

    eventually("both are counted", lambda: counted() == [1, 1])
    reaches("Slots that are stuck", 0, bundle)


def selector(name: str) -> str:
    return next(match[0] for match in SELECTOR.finditer(DOCS + RULES) if match[1] == name)


def test_room_on_the_disk(own: Bundle) -> None:
    """A limit above what is free raises the alarm, and the quotient falls below 1."""
    free, limit = NUMBERS["Room on the broker's disk"].split(" / ")
    watermark = selector("rabbitmq_alarms_free_disk_space_watermark")

    def room() -> float:
        samples = of_rabbitmq(own)
        return value(free, samples) / value(limit, samples)

    eventually("there is room", lambda: room() > 3)
    eventually("there is no alarm", lambda: value(watermark, of_rabbitmq(own)) == 0)
    with alarm(own.node, "disk"):
        eventually("the alarm is raised", lambda: value(watermark, of_rabbitmq(own)) == 1)
        eventually("the quotient falls", lambda: room() < 1)
    eventually("the alarm is over", lambda: value(watermark, of_rabbitmq(own)) == 0)
