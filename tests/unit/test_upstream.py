"""Private parts of other projects that the code uses: `docs/upstream.md` lists all, and they are few."""

import logging
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from celery.app import trace

from proj.errors import BadArguments
from proj.tasks import add

ROOT = Path(__file__).parents[2]


def _script() -> Any:
    loader = SourceFileLoader("upstream", str(ROOT / "scripts/upstream"))
    spec = spec_from_loader("upstream", loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_page_is_what_the_code_says() -> None:
    """Each comment is in the page, with its test, and there are less than fifteen."""
    page, number = _script().table()

    assert (ROOT / "docs/upstream.md").read_text() == page, "run: make upstream"
    assert number < 15


# upstream: not reported; remove when Celery can leave out its own lines about tasks
def test_celery_marks_its_lines_about_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line about a failure has the data for custom handlers, by which it is left out."""
    records: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    monkeypatch.setattr(trace.logger, "filters", [keep])
    with pytest.raises(BadArguments):
        add.apply(("x",)).get()

    assert [(record.levelname, hasattr(record, "data")) for record in records] == [("ERROR", True)]


# upstream: not reported; remove when kombu looks up a scheme anew after its alias has changed
def test_kombu_keeps_the_transport_that_it_found_first() -> None:
    """Also when the alias changes; with the cache cleared, it is ours, whatever was used before."""
    code = """
import kombu.transport as kombus
before = kombus.get_transport_cls("amqp").__module__
aliases = dict(kombus.TRANSPORT_ALIASES)
kombus.TRANSPORT_ALIASES["amqp"] = "kombu.transport.memory:Transport"
kept = kombus.get_transport_cls("amqp").__module__
kombus.TRANSPORT_ALIASES.update(aliases)
import proj.rabbitmq.transport
print(before, kept, kombus.get_transport_cls("amqp").__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert done.stdout.split() == ["kombu.transport.pyamqp"] * 2 + ["proj.rabbitmq.transport"]
