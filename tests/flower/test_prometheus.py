"""A real Prometheus with our configuration reads the broker and Flower, and each panel has its numbers."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from tests.flower.conftest import Site
from tests.lib.flower import LOGIN
from tests.lib.missing import missing
from tests.lib.waiting import PATIENCE, eventually

DEPLOY = Path(__file__).parents[2] / "deploy"

PANELS = json.loads((DEPLOY / "grafana/proj.json").read_text())["panels"]
QUERIES = {target["expr"]: panel["title"] for panel in PANELS for target in panel["targets"]}


def _soon(text: str) -> str:
    """With minutes in place of which a test can wait for seconds."""
    return re.sub(r"\b(5|15)m\b", "4s", text)


class Prometheus:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def text(self) -> str:
        return self._log.read_text()

    @property
    def _url(self) -> str:
        assert self.process.poll() is None, self.text()
        match = re.search(r'"Listening on" address=(\S+)', self.text())
        return f"http://{match[1]}" if match else ""

    def ready(self) -> None:
        eventually("it answers", lambda: self._url and "Server is ready" in self.text(), seen=self.text)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """What an instant query returns now; fails on one that Prometheus does not accept."""
        url = f"{self._url}/api/v1/query?{urlencode({'query': _soon(query)})}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            found = json.loads(answer.read())
        assert found["status"] == "success", found
        return list(found["data"]["result"])


@pytest.fixture
def prometheus(site: Site, tmp_path: Path) -> Iterator[Prometheus]:
    """With our jobs and rules, each second."""
    program = shutil.which("prometheus") or missing(
        "Prometheus was not found: install it with `sudo apt-get install prometheus` (Debian, Ubuntu)"
    )
    config = (DEPLOY / "prometheus/prometheus.yml").read_text()
    user, password = LOGIN.split(":")
    for ours, instead in {
        "interval: 15s": "interval: 1s",
        "127.0.0.1:15692": urlsplit(site.bundle.node.info.metrics_url).netloc,
        "127.0.0.1:5555": urlsplit(site.flower.url).netloc,
        'vhost: ["/"]': f'vhost: ["{site.bundle.vhost}"]',
        "username: USER": f"username: {user}",
    }.items():
        assert ours in config
        config = config.replace(ours, instead)
    (tmp_path / "prometheus.yml").write_text(config)
    (tmp_path / "rules.yml").write_text(_soon((DEPLOY / "prometheus/rules.yml").read_text()))
    (tmp_path / "flower-password").write_text(password)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={tmp_path}/prometheus.yml",
                f"--storage.tsdb.path={tmp_path}/data",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        started = Prometheus(process, log)
        started.ready()
        yield started
    finally:
        process.kill()
        process.wait(PATIENCE)


def test_each_panel_has_its_numbers(site: Site, prometheus: Prometheus) -> None:
    """With a worker that is busy, messages that wait, and a dead letter; from each job that we configure."""
    bundle = site.bundle
    gate = bundle.folder / "the gate of Prometheus"
    eventually("all are read", lambda: len(prometheus.ask("up == 1")) == 3, seen=prometheus.text)
    bundle.enqueue("task", "proj.tasks.fail")
    bundle.enqueue("add", "1", "2", "--count", "20")
    bundle.enqueue("task", "proj.tasks.gated", json.dumps(str(gate)))
    bundle.enqueue("add", "1", "2", "--count", "3")
    empty = dict(QUERIES)

    def fill() -> dict[str, str]:
        for query in list(empty):
            if prometheus.ask(query):
                del empty[query]
        return empty

    eventually("each query has a result", lambda: not fill(), seen=lambda: f"{empty}")

    (waiting,) = eventually("three wait", lambda: prometheus.ask("proj:messages_waiting:15m == 3"))
    assert waiting["metric"]["queue"] == "proj.tasks"
    queues = {each["metric"]["queue"] for each in prometheus.ask("rabbitmq_detailed_queue_consumers")}
    assert queues == {"proj.tasks", "proj.dead"}
    gate.touch()
    eventually("none waits", lambda: not prometheus.ask("proj:messages_waiting:15m > 0"))
