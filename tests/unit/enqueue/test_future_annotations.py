"""Tasks of a module whose annotations are texts until they are looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from pydantic import BaseModel, Field

from proj import app
from proj.errors import BadArguments, BrokerUnreachable

if TYPE_CHECKING:
    from tests.lib.bundle import Bundle


class Order(BaseModel):
    number: int


def _ship(order: Order, *, copies: Annotated[int, Field(ge=1)] = 1) -> Bundle | list[Any]:
    return [order, copies]


def _bound(
    self: Bundle, orders: list[Order] | None = None, numbers: Iterable[int] = ()
) -> Bundle | list[Any]:
    return [orders, sum(numbers), sum(numbers)]


@pytest.mark.parametrize(
    "options", [{}, {"pydantic": True}, {"pydantic": True, "pydantic_strict": True}], ids=str
)
def test_annotations_are_looked_up_where_the_task_is(options: dict[str, Any]) -> None:
    """Only those of arguments; a model is made of its dict, or passed as it is, whoever does it."""
    made: Any = app.task(name="test.ship", shared=False, lazy=False, **options)
    ship = made(_ship)
    bound: Any = app.task(name="test.bound", bind=True, shared=False, lazy=False, **options)(_bound)
    try:
        assert ship({"number": 1}, copies=2) == [Order(number=1), 2]
        assert ship(Order(number=1)) == [Order(number=1), 1]
        assert bound([{"number": 1}], [1, 2]) == [[Order(number=1)], 3, 3]
        good: list[Callable[[], Any]] = [
            lambda: ship.delay({"number": 1}),
            lambda: bound.delay(),
            lambda: bound.delay(None, [1]),
        ]
        for call in good:
            with pytest.raises(BrokerUnreachable):
                call()
        with pytest.raises(
            BadArguments, match=r"argument order.number: .* got 'x' \(usage: test.ship\(order, copies\)\)"
        ):
            ship.delay({"number": "x"})
        with pytest.raises(BadArguments, match=r"argument copies: .* got 0"):
            ship.delay({"number": 1}, copies=0)
        with pytest.raises(BadArguments, match=r"argument orders.0: .* got 1"):
            bound.delay([1])
    finally:
        for task in (ship, bound):
            app.tasks.pop(task.name)


def test_model_is_sent_as_celery_sends_it() -> None:
    """As its dict, which the worker makes the same model of."""
    task = app.task(name="test.model", pydantic=True, shared=False, lazy=False)(_ship)
    try:
        with pytest.raises(BrokerUnreachable):
            task.delay(Order(number=1))
    finally:
        app.tasks.pop("test.model")
