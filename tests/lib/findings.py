"""What `proj doctor` finds, and doing what it says."""

import json
import shlex
import sqlite3
import subprocess
import time
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from proj.private_node.guard import environment
from proj.private_node.node import find_server_dir
from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually

Findings = list[dict[str, Any]]


def doctor(bundle: Bundle, env: dict[str, str] | None = None) -> Findings:
    """What the command says; its exit code is the one that fits."""
    done = bundle.proj("doctor", "--json", env=env)
    found: Findings = json.loads(done.stdout)
    assert done.returncode == any(finding["level"] == "error" for finding in found), done
    return found


#: Seconds in which the doctor ends, whatever hangs, and those that a busy machine may take beyond.
LIMIT, SLACK = 30, 20


def hurry(bundle: Bundle) -> None:
    """Let the copy's doctor wait a second or two for what hangs."""
    bundle.switch_off("doctor/subject.py", "PATIENCE: Final = 5", "PATIENCE: Final = 2")
    bundle.switch_off("doctor/workers.py", "_BEAT_PATIENCE: Final = 3.0", "_BEAT_PATIENCE: Final = 1.0")
    bundle.switch_off(
        "doctor/settings.py", "_STORE_TIMEOUT: Final = 2 * PATIENCE + CONNECT_TIMEOUT", "_STORE_TIMEOUT = 2"
    )
    bundle.switch_off("doctor/settings.py", "_RESOLVE_TIMEOUT: Final = 2", "_RESOLVE_TIMEOUT: Final = 0.5")
    bundle.switch_off("rabbitmq/management.py", "TIMEOUT: Final = 5.0", "TIMEOUT: Final = 2.0")


def examine_after(bundle: Bundle, before: str) -> tuple[Findings, float]:
    """What the doctor finds in a program that has run these lines before, and the seconds that it takes."""
    found, seconds = bundle.python(f"""
import dataclasses, json, time
from proj import app, doctor
{before}
began = time.monotonic()
found = [dataclasses.asdict(finding) for finding in doctor.examine(app)]
print(json.dumps([found, time.monotonic() - began]))
""")
    return found, seconds


def bad(found: Findings) -> list[tuple[str, str]]:
    """Level and check of what is not well."""
    return [(each["level"], each["check"]) for each in found if each["level"] not in {"ok", "info"}]


def finds(bundle: Bundle, *expected: tuple[str, str]) -> Findings:
    """What the command says once it is this that is not well: who stalls for a second is told too."""
    found: Findings = []

    def as_expected() -> bool:
        found[:] = doctor(bundle)
        return bad(found) == list(expected)

    eventually(f"the doctor finds {expected}", as_expected, seen=lambda: json.dumps(found, indent=1))
    return found


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
            case "rabbitmq-queues":
                scripts = find_server_dir()
                steps: list[str] = [str(scripts / program), *arguments]
                subprocess.run(steps, env=environment(bundle.node.info, scripts), check=True)
            case "curl":
                bundle.management("DELETE", urlsplit(arguments[-1]).path.removeprefix("/api/"))
            case "celery" if "worker" in arguments:
                bundle.worker(log=f"mending-{time.monotonic()}.log").ready()
            case "celery":
                assert arguments[:2] == ["-A", "proj"]
                control(bundle, *arguments[2:])
            case _:
                raise AssertionError(f"nothing to run: {finding}")


def control(bundle: Bundle, *arguments: str) -> None:
    """Run `celery -A proj`, until a worker has answered: one that stalls for a second is not waited for."""
    eventually("a worker answers", lambda: bundle.celery(*arguments).returncode == 0)


def results(bundle: Bundle) -> int:
    """How many results are stored."""
    with closing(sqlite3.connect(bundle.folder / "state/results.sqlite3")) as database:
        return int(database.execute("SELECT COUNT(*) FROM celery_taskmeta").fetchone()[0])


def known_policies(bundle: Bundle) -> set[str]:
    """The queues that one is known of."""
    return {each["name"] for each in bundle.of_vhost("queues") if each.get("effective_policy_definition")}
