"""Foreign messages that nobody takes, and routes that are wrong, are found."""

import pytest

from tests.lib import foreign
from tests.lib.bundle import Bundle
from tests.lib.findings import about, doctor

pytestmark = pytest.mark.used_vhost


def test_foreign_messages_wait_for_ingest(declared: Bundle) -> None:
    """Those of the routes; a queue without messages, or without a route, is nobody's concern."""
    foreign.publish(declared, ["a"])
    foreign.publish(declared, [], "add")
    waiting = about(doctor(declared), "foreign_queues", "queue task_queue has 1 message of", "no consumer")
    assert waiting["fix"] == "start it with: proj ingest"

    foreign.start(declared).consumes().says("published")

    levels = {each["what"]: each["level"] for each in doctor(declared) if each["check"] == "foreign_queues"}
    assert levels == {f"queue {name} of other programs is consumed": "ok" for name in ("task_queue", "add")}


def test_wrong_routes_are_found(declared: Bundle) -> None:
    routes = declared.folder / "routes.toml"
    routes.write_text('[[route]]\nqueue = "q"\ndecoder = "jason"\ntask = "proj.tasks.add"\n')
    found = about(doctor(declared, {"PROJ_INGEST_ROUTES": str(routes)}), "foreign_queues", "route 1")
    assert found["fix"] == "did you mean json?"
