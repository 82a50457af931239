"""The alerts of deploy/prometheus, and the pages that name them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lib.missing import missing

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
RULES = (DEPLOY / "prometheus/rules.yml").read_text()
DOCS = (ROOT / "docs/metrics.md").read_text()


def _promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool") or missing(
        "promtool was not found: install it with `sudo apt-get install prometheus` (Debian, Ubuntu)"
    )
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


def test_configuration_can_be_used(tmp_path: Path) -> None:
    """With the rules that it names."""
    shutil.copytree(DEPLOY / "prometheus", tmp_path, dirs_exist_ok=True)
    (tmp_path / "flower-password").write_text("a password")
    done = _promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_alerts_fire_when_they_should_and_only_then() -> None:
    """On the numbers of `rules_test.yml`."""
    done = _promtool("test", "rules", Path(__file__).parent / "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    """And says what to do."""
    alerts = re.findall(r"- alert: (\w+)", RULES)
    tested = (Path(__file__).parent / "rules_test.yml").read_text()
    assert len(alerts) == RULES.count("summary: ") == RULES.count("todo: ") > 5
    assert [name for name in alerts if f'alertname="{name}"' not in tested] == []


@pytest.mark.parametrize("name", re.findall(r"- alert: (\w+)", RULES))
def test_every_alert_is_on_the_page(name: str) -> None:
    """Of its number."""
    assert f"`{name}`" in DOCS


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    """And each has a query, an explanation, and an id of its own."""
    panels = json.loads((DEPLOY / "grafana/proj.json").read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["targets"] and panel["description"] for panel in panels)
