"""The runs of a beat, as a worker has executed them, and as the beats remember the last."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import sqlalchemy

from proj.beat.entry import Entry
from tests.lib import stores
from tests.lib.bundle import Bundle
from tests.lib.worker import Worker

#: An entry for a user's tasks that is due each second.
TICK = 'app.add_periodic_task(1.0, add.s(1, 2), name="tick", missed="each")'


def executed(worker: Worker) -> dict[str, float]:
    """When each run was executed, by its id; none was executed twice."""
    lines = worker.lines("succeeded in")
    assert max(Counter(line.id for line in lines).values(), default=1) == 1
    return {line.id: line.at for line in lines}


def repeats(worker: Worker) -> int:
    """How many runs came to the worker a second time."""
    received = Counter(line.id for line in worker.lines("received"))
    return sum(received.values()) - len(received)


def takeovers(*beats: Worker) -> int:
    """How often one has led after another, or again: who leads no more may not remember its last run."""
    return sum(beat.text().count("this beat leads\n") for beat in beats) - 1


def last_runs(bundle: Bundle, count: int, begin: int = 0) -> set[str]:
    """The ids of so many runs of `TICK`, up to the last one that the beat remembers, or to one beside it."""
    store = bundle.env.get("CELERY_RESULT_BACKEND", f"db+sqlite:///{stores.file(bundle)}").removeprefix("db+")
    engine = sqlalchemy.create_engine(store, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        query = sqlalchemy.text("SELECT due FROM proj_beat WHERE entry = 'tick'")
        due = connection.execute(query).scalar_one()
    last = datetime.fromtimestamp(due, UTC)
    entry = Entry(name="tick", task="proj.tasks.add", schedule=1.0)
    return {entry.run_id(last - timedelta(seconds=number)) for number in range(begin, begin + count)}
