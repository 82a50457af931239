"""What the backend of databases does in its own way is what Celery's does."""

from typing import Any

import pytest
from celery.backends.database import DatabaseBackend
from hypothesis import given
from hypothesis import strategies as st

from proj import app
from proj.results.database import Database

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes()
    | st.decimals() | st.uuids() | st.sampled_from([object(), ValueError("no"), 1j, {1: 2, "1": 3}, {(): 0}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


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
