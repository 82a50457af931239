"""JSON Schema says of arguments what the worker says of them."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr

import proj.tasks
from proj.enqueue import schema
from proj.enqueue.arguments import check_call
from proj.enqueue.parameters import Parameters
from proj.errors import BadArguments
from proj.tasks import Number
from tests.lib.schemas import values


def lax(
    whole: int,
    text: str = "x",
    flag: bool = False,
    numbers: list[float] | None = None,
    table: dict[str, int] = {},  # noqa: B006  it is not changed
    word: Literal["a", "b"] = "a",
    few: Annotated[list[int], Field(max_length=3)] = [],  # noqa: B006
    day: date | None = None,
) -> None: ...


def by_name_only(*, x: Annotated[int, Field(ge=1, le=9)], **rest: str) -> None: ...


def strict(
    whole: StrictInt,
    text: StrictStr,
    flag: StrictBool,
    number: StrictFloat | StrictInt | None,
    texts: list[StrictStr],
    either: StrictBool | StrictStr = True,
) -> None: ...


def number(x: Number) -> None: ...


FUNCTIONS = [lax, by_name_only, strict, number]


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    return schema.arguments(list(Parameters("t", function).signature.parameters.values()))


def accepts(function: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    try:
        check_call("t", (), kwargs, Parameters("t", function))
    except BadArguments:
        return False
    return True


@pytest.mark.parametrize("function", FUNCTIONS)
@given(st.data())
@hypothesis.settings(max_examples=30)
def test_what_the_schema_accepts_the_worker_accepts(
    function: Callable[..., Any], data: st.DataObject
) -> None:
    kwargs = data.draw(values(schema_of(function)))
    assert accepts(function, kwargs), kwargs


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab"),
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.text("ab"), inside, max_size=2),
    max_leaves=3,
)

GOOD = {"whole": 1, "text": "a", "flag": True, "number": 1.5, "texts": ["a"], "either": "a"}


@given(st.sampled_from([*GOOD, "more"]), JSON_VALUES)
def test_what_the_worker_accepts_of_strict_types_the_schema_accepts(name: str, value: Any) -> None:
    """Also the converse. Others are converted: for `int`, pydantic takes "2". JSON has one 1 and 1.0."""
    hypothesis.assume(not (isinstance(value, float) and value.is_integer()))
    kwargs = GOOD | {name: value}
    assert Draft202012Validator(schema_of(strict)).is_valid(kwargs) == accepts(strict, kwargs)


def test_a_schema_is_one() -> None:
    """With its dialect, the name of the task, and the docstring."""
    for task in (proj.tasks.add, proj.tasks.sleep_dots):
        made = schema.of_task(task)
        Draft202012Validator.check_schema(made)
        assert (made["$schema"], made["title"]) == (schema.DIALECT, task.name)
        assert made["description"].startswith(("Return the sum", "Sleep one second"))


def test_arguments_without_names_are_an_array() -> None:
    def placed(x: int, /, *rest: str) -> None: ...

    made = Draft202012Validator(schema_of(placed))
    assert [made.is_valid(value) for value in ([1, "a"], ["a"], {"x": 1})] == [True, False, False]


def test_arguments_of_both_kinds_have_their_names() -> None:
    def mixed(x: int, /, *rest: str, y: int) -> None: ...

    made = Draft202012Validator(schema_of(mixed))
    assert [made.is_valid(value) for value in ({"x": 1, "y": 2}, {"x": 1})] == [True, False]


def test_what_json_cannot_carry_is_accepted_by_nobody() -> None:
    """A class that pydantic does not know; a default that JSON lacks is left out."""

    def files(
        path: Parameters | None = None, where: Path = Path("x"), most: float = float("inf")
    ) -> None: ...

    made = schema_of(files)
    json.dumps(made)
    assert [Draft202012Validator(made).is_valid(value) for value in ({"path": None}, {"path": "x"})] == [
        True,
        False,
    ]
