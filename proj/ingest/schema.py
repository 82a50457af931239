"""JSON Schema of the bodies that a route accepts."""

from typing import Any, Final

from proj.enqueue import schema
from proj.ingest.decoders import LEAST, MOST
from proj.ingest.routes import Route

#: Keywords whose values are not schemas.
_VALUES: Final = ("default", "const", "enum", "examples")


def of_route(route: Route) -> dict[str, Any]:
    """The schema of the body of a foreign message, for a text as a JSON string.

    What a decoder of one's own accepts is unknown: its schema says only what its docstring says.
    """
    parameters = list(route.task.parameters.signature.parameters.values())
    made: dict[str, Any]
    match route.decoder:
        case "text":
            placed = schema.by_place(parameters)
            first = (placed.get("prefixItems") or [placed.get("items") or {}])[0]
            is_text = isinstance(first, dict) and first.get("type") == "string"
            made = {"type": "string", "minLength": 1} | (first if is_text else {})
            made |= {"not": {"pattern": "^\ufeff"}, "contentMediaType": "text/plain"}
        case "json":
            made = _bounded(_renamed(schema.by_name(parameters), route))
        case "json-args":
            made = _bounded(schema.by_place(parameters))
        case _:
            made = {"$comment": f"as {route.decoder} decodes it: {route.decode.__doc__ or 'unknown'}"}
    return schema.headed(f"{route.queue}: {route.task.name}", route.task, made)


def _renamed(made: dict[str, Any], route: Route) -> dict[str, Any]:
    """The schema with the keys that stand for the arguments' names."""
    keys = {name: key for key, name in route.names.items()}
    properties = {keys.get(name, name): each for name, each in made.get("properties", {}).items()}
    required = [keys.get(name, name) for name in made.get("required", [])]
    return made | {"properties": properties} | ({"required": required} if required else {})


def _bounded(made: Any) -> Any:
    """The schema with the bounds of 64 bits for each number."""
    if isinstance(made, list):
        return [_bounded(each) for each in made]
    if not isinstance(made, dict):
        return made
    bounded = {key: each if key in _VALUES else _bounded(each) for key, each in made.items()}
    if made.get("type") in ("integer", "number"):
        bounded["minimum"] = max(made.get("minimum", LEAST), LEAST)
        bounded["maximum"] = min(made.get("maximum", MOST), MOST)
    return bounded
