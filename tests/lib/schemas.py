"""Values that a JSON Schema accepts: enough of it for the schemas of the tests."""

import math
from datetime import date
from typing import Any

from hypothesis import strategies as st
from jsonschema import Draft202012Validator

_ANY = st.none() | st.booleans() | st.integers() | st.text(max_size=3)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of which the validator says that the schema accepts them."""
    return _values(schema).filter(Draft202012Validator(schema).is_valid)


def _values(schema: Any) -> st.SearchStrategy[Any]:
    match schema:
        case {"anyOf": several}:
            return st.one_of([_values(each) for each in several])
        case {"enum": several}:
            return st.sampled_from(several)
        case {"const": only}:
            return st.just(only)
        case {"not": {}, **others} if "type" not in others:
            return st.nothing()
        case {"type": "object"}:
            return _objects(schema)
        case {"type": "array"}:
            most = schema.get("maxItems", 4)
            return st.lists(_values(schema.get("items", {})), max_size=most)
        case {"type": "integer"}:
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case {"type": "number"}:
            least, most = schema.get("minimum"), schema.get("maximum")
            fractions = st.floats(-1e6, 1e6) if schema.keys() & {"minimum", "maximum"} else st.floats()
            return st.integers(least, most) | fractions.filter(math.isfinite)
        case {"type": "string", "format": "date"}:
            return st.dates().map(date.isoformat)
        case {"type": "string"}:
            return st.text(st.characters(codec="utf-8"), max_size=schema.get("maxLength", 20))
        case {"type": "boolean"}:
            return st.booleans()
        case {"type": "null"}:
            return st.none()
    return _ANY


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    known = {name: _values(each) for name, each in schema.get("properties", {}).items()}
    required = {name: each for name, each in known.items() if name in schema.get("required", [])}
    optional = {name: each for name, each in known.items() if name not in required}
    made = st.fixed_dictionaries(required, optional=optional)
    if (more := schema.get("additionalProperties", True)) is False:
        return made
    others = st.dictionaries(st.text("xyz", min_size=2), _values(more), max_size=2)
    return st.builds(lambda one, other: other | one, made, others)
