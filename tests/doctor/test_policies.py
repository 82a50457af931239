"""Policies that break the promise are found, and taken away by what is said."""

import re
from typing import Any
from urllib.parse import quote

from tests.lib.bundle import Bundle
from tests.lib.findings import Findings, doctor, finds, follow, known_policies
from tests.lib.waiting import eventually

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
    meant = {queue["name"] for queue in bundle.of_vhost("queues") if re.match(pattern, queue["name"])}
    eventually("the policy is known", lambda: known_policies(bundle) == meant)
    return [each for each in doctor(bundle) if each["check"] == "policies"]


def mended(bundle: Bundle, finding: dict[str, Any]) -> None:
    """The printed command takes the policy away."""
    follow(bundle, finding)
    eventually("no policy is known", lambda: not known_policies(bundle))
    finds(bundle, ("warning", "present_workers"))


def test_policies_that_break_the_promise(own: Bundle) -> None:
    """Each is told with the queues that it harms."""
    own.declare()
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
    own.declare()
    found = policies(own, {"max-length": 10**6, "overflow": "reject-publish", "dead-letter-exchange": "x"})

    assert [each["level"] for each in found] == ["info", "ok"]
    assert "max-length" in found[0]["what"]


def test_operator_policy(own: Bundle) -> None:
    """The command that takes it away is another one."""
    own.declare()
    (finding,) = policies(own, {"message-ttl": 5000}, "operator-policies", "proj.*dead|proj.*tasks")[:1]

    assert "clear_operator_policy" in finding["fix"]
    mended(own, finding)
