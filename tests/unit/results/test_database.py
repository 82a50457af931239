"""What the backend of databases does in its own way is what Celery's does."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import states
from celery.app.task import Context
from celery.backends.database import DatabaseBackend
from hypothesis import given
from hypothesis import strategies as st

from proj import app
from proj.results import database, finality
from proj.results.database import Database
from tests.lib.waiting import PATIENCE

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes()
    | st.decimals() | st.uuids() | st.sampled_from([object(), ValueError("no"), 1j, {1: 2, "1": 3}, {(): 0}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


TEXTS = st.text(max_size=200)

#: What a task is executed for, as its worker knows it.
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "id": TEXTS,
        "task": TEXTS,
        "args": st.lists(st.integers(), max_size=3) | st.tuples(TEXTS),
        "kwargs": st.dictionaries(TEXTS, st.integers(), max_size=3),
        "hostname": TEXTS,
        "retries": st.integers(0, 10),
        "delivery_info": st.none() | st.dictionaries(st.just("routing_key"), TEXTS),
        "children": st.lists(TEXTS.map(app.AsyncResult), max_size=2),
        "stamps": st.none() | st.dictionaries(st.sampled_from(["a", "b", "c"]), TEXTS),
        "stamped_headers": st.none() | st.lists(st.sampled_from(["a", "b", "d"]), unique=True),
    },
)


class Ours(Database, DatabaseBackend):
    """As `proj.results.store` makes it."""


def _encoded(kind: type[Any], value: object, **options: Any) -> str:
    store = kind(app=app, url="sqlite://", **options)
    store.compression = options.get("compression")
    try:
        return repr(store.encode(value))
    except Exception as error:
        return f"{type(error)} {error}"


@given(VALUES)
def test_any_value_is_encoded_as_by_celery(value: object) -> None:
    """And what cannot be encoded is refused in Celery's words."""
    assert _encoded(Ours, value) == _encoded(DatabaseBackend, value)


@pytest.mark.parametrize("options", [{"serializer": "pickle"}, {"compression": "zlib"}])
def test_other_encodings_are_celerys(options: dict[str, Any]) -> None:
    assert _encoded(Ours, [1], **options)[:12] == _encoded(DatabaseBackend, [1], **options)[:12]
    assert _encoded(Ours, [1], **options) != _encoded(Ours, [1])


@given(
    st.none() | st.integers() | TEXTS,
    st.sampled_from(sorted(states.ALL_STATES)),
    st.none() | TEXTS,
    st.none() | REQUESTS.map(Context),
)
def test_row_is_as_celerys(result: Any, state: str, traceback: str | None, request: Context | None) -> None:
    """But for what no database can store, and the number of the attempt; redrives count for it too."""
    ours = Ours(app=app, url="sqlite://")._row("it", result, state, traceback, request)
    theirs = SimpleNamespace(task_id="it", children=None, stamps=None)
    backend = DatabaseBackend(app=app, url="sqlite://")
    backend._update_result(theirs, result, state, traceback=traceback, request=request)
    assert (ours.pop("date_done") is None) == (vars(theirs).pop("date_done") is None)
    assert ours.pop("attempt") == finality.attempt_of(request)
    lengths = database._lengths(backend.task_cls.__table__)
    assert ours == {
        name: database._fitting(value, lengths[name]) if isinstance(value, str) else value
        for name, value in vars(theirs).items()
    }


def test_time_of_an_end_has_no_zone() -> None:
    """Celery reads it as UTC."""
    before = datetime.now(UTC).replace(tzinfo=None)
    done = Ours(app=app, url="sqlite://")._row("it", 1, states.SUCCESS, None, None)["date_done"]
    assert before <= done <= before + timedelta(seconds=PATIENCE)
