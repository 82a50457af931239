"""What a task takes, and what a message can carry."""

import collections
import dataclasses
import enum
import json
import math
from collections.abc import Callable, Generator, Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json
from pydantic import BaseModel, BeforeValidator
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from proj.enqueue.arguments import check_call, given_arguments
from proj.enqueue.checks import MAX_NESTING
from proj.enqueue.parameters import Parameters
from proj.errors import BadArguments, BadTask

if TYPE_CHECKING:
    from tests.lib.bundle import Bundle as Report

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.text(st.characters(codec="utf-8"))
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inside, max_size=3)
    ),
    max_leaves=8,
)


class Colour(enum.Enum):
    RED = "red"


class Shade(enum.StrEnum):
    DARK = "dark"


@dataclasses.dataclass
class Point:
    x: int


class Pair(NamedTuple):
    left: int
    right: int


class Order(BaseModel):
    number: int


class Options(TypedDict, total=False):
    loud: bool


class Self:
    """What says itself how it travels."""

    def __json__(self) -> str:
        return "itself"


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError


def _refuse(_: object) -> None:
    raise TypeError("a slip\nof the validator")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def _is_for_people(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


def _any(x): ...  # type: ignore[no-untyped-def]


def _passes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The arguments as the task gets them in a worker."""
    parameters = Parameters("a.task", function)
    check_call("a.task", args, kwargs, parameters)
    return parameters.check(*kombu_json.loads(kombu_json.dumps([args, kwargs])))


@given(JSON_VALUES)
def test_what_json_has_arrives_as_it_is(value: Any) -> None:
    """Whatever JSON has, however deep, but for a dict of just the two keys that kombu uses itself."""
    ((arrived,), _) = _passes(_any, value)
    assert arrived == value


ODD_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.decimals()
    | st.uuids()
    | st.dates()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.timedeltas()
    | st.sampled_from([Colour.RED, Shade.DARK, Point(1), Pair(1, 2), object(), "__type__", "__value__"]),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.tuples(inside, inside)
        | st.dictionaries(
            st.integers(-1, 1) | st.sampled_from(["1", "__type__", "__value__", None, True]), inside
        )
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=8,
)


def _as_lists(value: Any) -> Any:
    if type(value) is tuple:
        value = list(value)
    if isinstance(value, list):
        return [_as_lists(each) for each in value]
    return {key: _as_lists(each) for key, each in value.items()} if isinstance(value, dict) else value


@given(ODD_VALUES)
def test_value_arrives_or_is_refused(value: Any) -> None:
    """No value is lost, and none becomes another; only a tuple is a list."""
    try:
        ((arrived,), _) = _passes(_any, value)
    except BadArguments as error:
        _is_for_people(error)
    else:
        wanted = _as_lists(value)
        # A number that is no number, and a moment that a clock shows twice, equal nothing. To compare a
        # signalling NaN raises, so what is written comes first.
        assert kombu_json.dumps(arrived) == kombu_json.dumps(wanted) or arrived == wanted


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1: "a", "1": "b"}, r"argument x: \{1: 'a', '1': 'b'\} would arrive as \{'1': 'b'\}"),
        ({"in": [{None: 1}]}, r"argument x.in.0: \{None: 1\} would arrive as \{'null': 1\}"),
        ({"__type__": "x", "__value__": 1}, "cannot carry argument x: a dict with __type__ and __value__"),
        ([{"__type__": "decimal", "__value__": "1"}], r"argument x.0: .* would arrive as Decimal\('1'\)"),
        (Pair(1, 2), r"argument x: Pair\(left=1, right=2\) would arrive as \[1, 2\]"),
        ({1, 2}, "argument x: Object of type set is not"),
        (timedelta(1), "argument x: Object of type timedelta"),
        (Colour.RED, "argument x: Object of type Colour"),
        (Point(1), "argument x: Object of type Point"),
        (Silent(), "argument x: Object of type Silent"),
        (math.nan, "argument x: Out of range"),
        ([math.inf], "argument x: Out of range"),
        ("\ud800", "argument x: 'utf-8' codec can't encode"),
        ({(1, 2): 3}, "argument x: keys must be str"),
        pytest.param(10**5000, "argument x: Exceeds the limit", id="5000 digits"),
        pytest.param(
            nested(100_000), f"argument x: it is nested more than {MAX_NESTING} deep", id="very deep"
        ),
        (nested(MAX_NESTING + 1), f"argument x: it is nested more than {MAX_NESTING} deep"),
        ([1, {"wide": [nested(MAX_NESTING)]}], f"argument x: it is nested more than {MAX_NESTING} deep"),
    ],
)
def test_what_does_not_arrive_is_refused(value: Any, words: str) -> None:
    """In one line, with the argument and what is wrong with it."""
    with pytest.raises(BadArguments, match=words) as refused:
        _passes(_any, value)
    _is_for_people(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        b"\xff",
        Decimal("NaN"),
        UUID(int=1),
        date(2026, 1, 1),
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
        Shade.DARK,
        collections.OrderedDict(a=1),
        {"__type__": 1, "__value__": 2, "more": 3},
        Self(),
        nested(MAX_NESTING),
        [[]] * 1000,
    ],
)
def test_what_arrives_as_an_equal_is_not_refused(value: Any) -> None:
    """What kombu's JSON knows, and what is equal to what arrives."""
    _passes(_any, value)


def _iterable(
    x: Iterable[int], y: list[Iterable[int]] | None = None, z: Generator[int] | None = None
) -> None: ...
def _annotated(x: Annotated[Iterable[int] | None, BeforeValidator(lambda value: value)]) -> None: ...
def _typed(
    colour: Colour, /, point: Point, *rest: Pair, order: Order, keys: dict[int, str], **options: bool
) -> None: ...
def _options(options: Options, number: int = 1) -> None: ...
def _odd(x: Self) -> None: ...
def _validated(x: Annotated[int, BeforeValidator(_refuse)]) -> None: ...


@pytest.mark.parametrize("function", [_iterable, _annotated])
def test_iterable_is_checked_and_passed_as_it_was_given(function: Callable[..., Any]) -> None:
    """It can be iterated as often as before; pydantic's own check of it is used up after once."""
    value = [1, 2]
    ((first, *_), _) = Parameters("a.task", function).check((value,), {})

    assert first is value
    with pytest.raises(BadArguments, match=r"argument x\..*1: .* got 'two'"):
        _passes(function, [1, "two"])


def test_iterable_inside_is_passed_too() -> None:
    """In a list, a union, by its name."""
    assert _passes(_iterable, [1], y=[[1, 2]]) == (([1],), {"y": [[1, 2]], "z": None})
    with pytest.raises(BadArguments, match=r"argument y\..*'two'"):
        _passes(_iterable, [1], y=[[1, "two"]])


def test_annotations_turn_back_what_json_does_not_have() -> None:
    """A model from its dict, a member of an enumeration from its value, keys that are numbers."""
    args, kwargs = _passes(
        _typed, "red", {"x": 1}, Pair(1, 2), order=Order(number=1).model_dump(), keys={1: "a"}, loud=True
    )

    assert args == (Colour.RED, Point(1), Pair(1, 2))
    assert kwargs == {"order": Order(number=1), "keys": {1: "a"}, "loud": True}
    assert _passes(_options, {"loud": 1}, "2") == (({"loud": True}, 2), {})


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "words"),
    [
        (_any, (), {}, "argument x is missing"),
        (_any, (1,), {"\ud800": 1}, r"the name of an argument is not Unicode: '\\ud800'"),
        (_any, (1, 2), {}, "too many arguments, 2 is left over"),
        (_any, (1,), {"x": 2}, "argument x is given twice"),
        (_any, (1,), {"y": 2}, "there is no argument y"),
        (_typed, (), {}, "argument colour is missing"),
        (_typed, ("red", {"x": 1}, [1, "b"]), {"order": {"number": 1}, "keys": {}}, r"argument rest\[0\]"),
        (_typed, ("red", {"x": 1}), {"keys": {}}, "argument order is missing"),
        (_options, ({"loud": "x" * 10**6},), {}, "argument options.loud: .* got 'xxx"),
        (_odd, (Self(),), {}, "argument x: Input should be an instance of Self, got 'itself'"),
        (_validated, (1,), {}, "the arguments cannot be checked: a slip of the validator"),
    ],
)
def test_wrong_call_is_reported(function: Callable[..., Any], args: Any, kwargs: Any, words: str) -> None:
    """In one line, by the argument's name, whatever its kind."""
    with pytest.raises(BadArguments, match=words) as refused:
        _passes(function, *args, **kwargs)
    _is_for_people(refused.value)


@pytest.mark.parametrize(
    "args", ["!", b"!", 5, {"x": 1}, {1}, iter([1]), object()], ids=lambda value: type(value).__name__
)
def test_what_is_no_list_of_arguments_is_refused(args: Any) -> None:
    """A comma that is missing makes a text of a tuple of one."""
    with pytest.raises(BadArguments, match=r"a list or a tuple, got .*is a comma missing\?"):
        given_arguments("a.task", args, None)


@pytest.mark.parametrize(
    "kwargs", ["x", 5, [("x", 1)], {1: 2}, object()], ids=lambda value: type(value).__name__
)
def test_what_are_no_keyword_arguments_is_refused(kwargs: Any) -> None:
    """Names are texts."""
    with pytest.raises(BadArguments, match="keyword arguments are a dict"):
        given_arguments("a.task", (), kwargs)


def _report(x: int) -> "Report | None": ...
def _unknown(x: int, y: "list[Report]") -> None: ...
def _sentence(x: "the number of dots") -> None: ...  # type: ignore # noqa: F722
def _number(x: 5) -> None: ...  # type: ignore


def test_what_a_task_returns_need_not_be_known() -> None:
    """It may be imported for the type checker only."""
    assert _passes(_report, 1) == ((1,), {})


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            _unknown,
            r"a.task: the annotation of argument y cannot be used: list\[Report\]: name 'Report' is not",
        ),
        (_sentence, "a.task: the annotation of argument x cannot be used: the number of dots: "),
        (_number, "a.task: the annotation of argument x cannot be used: 5: "),
    ],
)
def test_annotation_that_cannot_be_used_is_named(function: Callable[..., Any], words: str) -> None:
    """With the task and the argument."""
    with pytest.raises(BadTask, match=words) as told:
        Parameters("a.task", function)
    assert "\n" not in str(told.value)


def test_name_of_a_class_inside_of_a_function_is_found() -> None:
    """Where the task's function uses it."""

    class Local(BaseModel):
        x: int

    def function(x: "Local") -> object:
        return Local(x=1)

    assert _passes(function, {"x": 1}) == ((Local(x=1),), {})


@given(st.lists(JSON_VALUES, max_size=3), st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=3))
@example([None], {"\n": None})
@example([None], {"x" * 10_000: None})
def test_any_call_is_taken_or_refused(args: list[Any], kwargs: dict[str, Any]) -> None:
    """No other error reaches the caller, whatever the function takes."""
    for function in (_any, _iterable, _typed, _options, _validated, len, json.dumps):
        try:
            _passes(function, *args, **kwargs)
        except BadArguments as error:
            _is_for_people(error)
