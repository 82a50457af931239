"""Hostile values at `.delay()`: each arrives as it was given, or is refused before it is sent."""

import pytest

from tests.lib.bundle import Bundle

pytestmark = pytest.mark.used_vhost

#: Says what it got, so exactly that a float, a truth value and a whole number are told apart.
TASK = """
    @app.task(name="proj.tasks.got")
    def got(value):
        import base64, pickle
        return base64.b64encode(pickle.dumps(value)).decode()
"""

#: Publishes what hypothesis makes of JSON, and of what looks like it, and compares.
PROGRAM = """
import base64, json, pickle
import hypothesis
from hypothesis import strategies as st
from proj.errors import BadInput
from proj.tasks import got

def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value

texts = st.text(st.characters(), max_size=20) | st.sampled_from(["__type__", "__value__", "x" * 100_000])
types = st.sampled_from(["bytes", "datetime", "uuid", "decimal"])
scalars = st.none() | st.booleans() | st.integers(-10**400, 10**400) | st.floats() | texts
values = st.recursive(
    scalars | st.builds(nested, st.sampled_from([50, 97, 98, 99, 100, 500, 5_000])),
    lambda inside: st.lists(inside, max_size=4)
    | st.dictionaries(texts | st.integers() | st.booleans() | st.none(), inside, max_size=4)
    | st.fixed_dictionaries({"__type__": texts | types, "__value__": inside}),
    max_leaves=6,
)
accepted, refused = [], 0

@hypothesis.settings(
    max_examples=200, derandomize=True, database=None, deadline=None,
    phases=[hypothesis.Phase.generate], suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(values)
def publish(value):
    global refused
    try:
        accepted.append((value, got.delay(value)))
    except BadInput:
        refused += 1

publish()

def arrived(value, result):
    came = pickle.loads(base64.b64decode(result.get(timeout=60)))
    return came == value and repr(came) == repr(value)

wrong = [repr(value)[:500] for value, result in accepted if not arrived(value, result)]
print(json.dumps([len(accepted), refused, wrong]))
"""


def test_whatever_is_accepted_arrives_as_it_was_given(bundle: Bundle) -> None:
    """Half characters, numbers that are none, dicts that lose a key, lists that are too deep."""
    bundle.add_task(TASK)
    bundle.worker("--concurrency=2")

    accepted, refused, wrong = bundle.python(PROGRAM)

    assert not wrong
    # Neither is the whole of it, or the values would show nothing.
    assert accepted > 50
    assert refused > 20
    assert bundle.depth("proj.dead") == 0
