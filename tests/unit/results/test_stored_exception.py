"""What is read where an exception is expected: all that JSON can hold, since a task may store any meta."""

from typing import Any

import pytest
from celery import states
from celery.backends.base import Backend

from proj import app
from proj.results import stored_exception
from proj.results.patience import Patient


class _Store(Patient, Backend):
    """Celery's way to read a state, without a store."""


#: What a task may give to `update_state`, and what of it is no class of an exception.
METAS = [
    {"reason": "no such file", "line": 3},
    {},
    [],
    ["a", "b"],
    [["a", "b"]],
    "no such file",
    "",
    0,
    0.5,
    True,
    None,
    {"exc_type": 5},
    {"exc_type": None, "exc_message": "no such file"},
    {"exc_type": "ValueError", "exc_module": ["builtins"]},
    {"exc_type": "a\0b", "exc_message": []},
    {"exc_type": "system", "exc_module": "os", "exc_message": "false"},
]


@pytest.mark.parametrize("state", sorted(states.EXCEPTION_STATES))
@pytest.mark.parametrize("meta", METAS, ids=repr)
def test_what_is_no_exception_is_read_as_one(state: str, meta: Any) -> None:
    """With all of it as its text; whoever reads the state gets it, also a second time."""
    store = _Store(app=app)

    read = store.meta_from_decoded({"status": state, "result": meta})
    again = store.meta_from_decoded(dict(read))

    assert type(read["result"]) is Exception
    assert read["result"].args == (meta,)
    assert stored_exception.words(read["result"]) == f"Exception: {meta}"
    assert again == read


def test_exception_that_a_task_has_stored_itself_is_rebuilt() -> None:
    """Celery's dict needs neither a module nor a text."""
    store = _Store(app=app)

    read = store.exception_to_python({"exc_type": "Odd", "exc_message": ["no such file"], "custom": 1})

    assert stored_exception.words(read) == "Odd: no such file"
