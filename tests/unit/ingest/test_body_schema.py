"""The schema of a foreign body says what its route takes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from proj import app
from proj.ingest import routes, schema
from proj.ingest.routes import Route
from proj.ingest.rubbish import Rubbish
from tests.lib.schemas import values

LIST = {"queue": "list", "decoder": "json-args", "task": "proj.tasks.add"}
TEXT, SUM, LISTED = routes.parse(app, {"route": [*routes.DEFAULT["route"], LIST]})


def takes(route: Route, body: str) -> bool:
    try:
        route.arguments(body.encode())
    except Rubbish:
        return False
    return True


@pytest.mark.parametrize("route", [TEXT, SUM])
@given(st.data())
@settings(max_examples=50)
def test_what_the_schema_accepts_the_route_takes(route: Route, data: st.DataObject) -> None:
    made = schema.of_route(route)
    value = data.draw(values(made))
    body = value if route is TEXT else json.dumps(value)
    assert takes(route, body)


@pytest.mark.parametrize(
    ("route", "value"),
    [
        (SUM, {"Number1": 221, "Number2": 345}),
        (SUM, {"Number1": 1}),
        (SUM, {"x": 1, "y": 2}),
        (SUM, {"Number1": 2**64, "Number2": 1}),
        (SUM, {"Number1": "1", "Number2": 2}),
        (LISTED, [1, 2.5]),
        (LISTED, [1]),
        (LISTED, [1, 2, 3]),
        (LISTED, {"x": 1, "y": 2}),
        (TEXT, "First message."),
        (TEXT, ""),
        (TEXT, "\ufeffx"),
    ],
)
def test_the_schema_and_the_route_agree(route: Route, value: Any) -> None:
    made = schema.of_route(route)
    Draft202012Validator.check_schema(made)
    body = value if route is TEXT else json.dumps(value)
    assert Draft202012Validator(made).is_valid(value) == takes(route, body)


def test_a_decoder_of_ones_own_is_named() -> None:
    [route] = routes.parse(app, {"route": [LIST | {"decoder": "json:loads"}]})
    assert "json:loads" in schema.of_route(route)["$comment"]
