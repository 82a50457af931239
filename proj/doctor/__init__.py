"""Checks of the broker, the topology, the settings and the workers, with a fix for each problem.

The checks are read-only: they create no queue, exchange or message, and move none.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from proj.doctor import beat, broker, ingest, policies, replicas, settings, topology, workers
from proj.doctor.finding import Finding, Level, error, skipped
from proj.doctor.subject import Subject
from proj.enqueue.app import App
from proj.errors import ProjError

__all__ = ["AREAS", "Finding", "Level", "examine"]

Check = Callable[[Subject], Iterator[Finding]]

#: All checks, in order; the name of a check is its function's.
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
        replicas.replicas,
    ),
    "settings": (
        settings.publishing,
        settings.tasks,
        settings.time_limits,
        settings.unread_names,
        settings.message_size,
        settings.result_store,
        settings.credentials,
    ),
    "workers": (workers.present_workers, workers.worker_clocks, ingest.foreign_queues, beat.running_beat),
}


def examine(app: App, *, debug: bool = False) -> Iterator[Finding]:
    """Yield each finding as soon as it is known.

    Ends within about half a minute even when the broker, its management API or the result store hangs. Raises
    `ConfigError` for tasks that cannot be imported. With `debug`, raises what a check did not expect.
    """
    app.loader.import_default_modules()

    with Subject(app.settings, app) as subject:
        for area, checks in AREAS.items():
            for check in checks:
                name = check.__name__.strip("_")
                for finding in _findings(check, name.replace("_", " "), subject, debug):
                    yield replace(finding, area=area, check=name)


def _findings(check: Check, name: str, subject: Subject, debug: bool) -> Iterator[Finding]:
    """What a check finds, and then why it could not go on."""
    try:
        yield from check(subject)
    except ProjError as why:
        yield skipped(f"{name}: not checked", why.message, why.hint)
    except Exception as why:  # whose text may hold a password
        if debug:
            raise
        yield error(
            f"{name}: the check failed with {type(why).__name__}",
            "what it checks is unknown",
            "show where it failed with: proj --debug doctor",
        )
