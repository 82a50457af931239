"""What a pool of processes could not be sent."""

import json
from typing import Any

import pytest
from celery.concurrency.prefork import TaskPool

from proj.worker import pools

POOL = TaskPool.__new__(TaskPool)


def _nested(depth: int) -> Any:
    value: Any = None
    for level in range(depth):
        value = [value] if level % 2 else {"x": value}
    return value


@pytest.mark.parametrize("encode", [str, str.encode])
def test_body_that_is_nested_too_deep(encode: Any) -> None:
    """It is found, whether its levels are many or a few more than what is sent without a look."""
    with pytest.raises(RecursionError):
        pools.check_sendable(POOL, {"args": _nested(5000)}, encode("[" * 5000 + "]" * 5000))
    for depth in (1, pools._FEW, pools._FEW + 1):
        value = _nested(depth)
        body = encode(json.dumps(value))
        assert pools._is_shallow(body) == (depth <= pools._FEW)
        pools.check_sendable(POOL, {"args": value}, body)


def test_what_is_sent_without_a_look_can_be_pickled() -> None:
    """Control: at the most levels that are not looked at, the look finds nothing."""
    pools.check_sendable(
        POOL, {"args": _nested(pools._FEW), "x": _nested(64)}, memoryview(b"of no known type")
    )
