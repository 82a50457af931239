"""JSON Schema (draft 2020-12) of a task's arguments, from its signature and its docstring."""

import inspect
from collections.abc import Iterable
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from proj.enqueue.parameters import CONFIG, check_of
from proj.enqueue.task import Task

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_PARAMETER: Final = inspect.Parameter

#: Parameters that can be given by name, and by position.
NAMED: Final = (_PARAMETER.POSITIONAL_OR_KEYWORD, _PARAMETER.KEYWORD_ONLY, _PARAMETER.VAR_KEYWORD)
PLACED: Final = (_PARAMETER.POSITIONAL_ONLY, _PARAMETER.POSITIONAL_OR_KEYWORD, _PARAMETER.VAR_POSITIONAL)


def of_task(task: Task) -> dict[str, Any]:
    """The schema of the arguments as an object with their names; as an array, if they have none."""
    parameters = list(task.parameters.signature.parameters.values())
    return headed(task.name, task, arguments(parameters))


def headed(title: str, task: Task, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its dialect, a title, and the task's docstring."""
    head = {"$schema": DIALECT, "title": title, "description": inspect.getdoc(task.run)}
    return {name: value for name, value in head.items() if value} | schema


def arguments(parameters: Iterable[inspect.Parameter]) -> dict[str, Any]:
    """The schema for these parameters; where some have no names and others no places, by all names."""
    given = list(parameters)
    try:
        return _generate(given)
    except PydanticInvalidForJsonSchema:
        named = [each for each in given if each.kind is not each.VAR_POSITIONAL]
        return by_name([_as(_PARAMETER.KEYWORD_ONLY, each) for each in named])


def by_name(parameters: Iterable[inspect.Parameter]) -> dict[str, Any]:
    """The schema of an object of those that can be given by name."""
    return _generate([_as(_PARAMETER.KEYWORD_ONLY, each) for each in parameters if each.kind in NAMED])


def by_place(parameters: Iterable[inspect.Parameter]) -> dict[str, Any]:
    """The schema of an array of those that can be given by position."""
    return _generate([_as(_PARAMETER.POSITIONAL_ONLY, each) for each in parameters if each.kind in PLACED])


def _as(kind: Any, parameter: inspect.Parameter) -> inspect.Parameter:
    rest = (_PARAMETER.VAR_POSITIONAL, _PARAMETER.VAR_KEYWORD)
    return parameter if parameter.kind in rest else parameter.replace(kind=kind)


def _generate(parameters: list[inspect.Parameter]) -> dict[str, Any]:
    check: Any = check_of(parameters)
    return TypeAdapter(check, config=CONFIG).json_schema(schema_generator=_Generator)


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, without a title for each argument."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def get_title_from_name(self, name: str) -> str:
        return name

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Say nothing of a default that JSON cannot carry: it is left out."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        """No JSON value is an instance of a class that pydantic does not know."""
        if schema.get("type") == "arguments":
            return super().handle_invalid_for_json_schema(schema, error_info)
        return {"not": {}}
