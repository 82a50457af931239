"""Look at the broker, the topology, the settings and the workers, and say what is in the way.

To look changes nothing: no queue, exchange or message is made on the broker, and none is moved.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from proj.doctor import broker, policies, settings, topology, workers
from proj.doctor.finding import Finding, Level, skipped
from proj.doctor.subject import Subject
from proj.enqueue.app import App
from proj.errors import ProjError

__all__ = ["AREAS", "Finding", "Level", "examine"]

Check = Callable[[Subject], Iterator[Finding]]

#: What is looked at, in this order; the name of a check is that of its function.
AREAS: Final[dict[str, tuple[Check, ...]]] = {
    "broker": (
        broker.reachable,
        broker.version,
        broker.management,
        broker.feature_flags,
        broker.nodes,
        broker.memory,
        broker.disk,
        broker.clock,
    ),
    "topology": (
        topology.exchanges,
        topology.queues_,
        topology.bindings,
        topology.delays,
        topology.delay_routes,
        policies.policies,
    ),
    "settings": (
        settings.publishing,
        settings.tasks,
        settings.time_limits,
        settings.message_size,
        settings.result_store,
        settings.credentials,
    ),
    "workers": (workers.present_workers, workers.worker_clocks),
}


def examine(app: App) -> Iterator[Finding]:
    """Each finding, as soon as it is known; all of them within about half a minute, whatever hangs.

    Raises `ConfigError` for settings that cannot be read, and for tasks that cannot be imported.
    """
    app.loader.import_default_modules()

    with Subject(app.settings, app) as subject:
        for area, checks in AREAS.items():
            for check in checks:
                name = check.__name__.strip("_")
                try:
                    for finding in check(subject):
                        yield replace(finding, area=area, check=name)
                except ProjError as error:
                    yield replace(_not_looked_at(name, error), area=area, check=name)


def _not_looked_at(name: str, error: ProjError) -> Finding:
    return skipped(f"{name.replace('_', ' ')}: not looked at", error.message, error.hint)
