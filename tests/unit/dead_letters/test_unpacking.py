"""Compressed bodies, unpacked within a limit: by each method that kombu has here."""

import lzma
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import compression

from proj.dead_letters import unpacking
from proj.dead_letters.unpacking import LIMIT, NotUnpacked, unpack

METHODS = sorted({*compression.encoders()})


@pytest.mark.parametrize("method", METHODS)
def test_body_comes_out_as_it_was(method: str) -> None:
    """What kombu has packed is unpacked, up to the limit."""
    for body in (b"", b"[[1, 2], {}, {}]", b"\0" * LIMIT):
        packed, name = compression.compress(body, method)
        assert unpack(packed, name) == body


@pytest.mark.parametrize("method", METHODS)
def test_bomb_is_unpacked_to_the_limit_only(method: str) -> None:
    """A body of a few kilobytes that is many megabytes takes no more memory than the limit asks for."""
    packed, name = compression.compress(b"\0" * 32 * LIMIT, method)
    tracemalloc.start()
    try:
        with pytest.raises(NotUnpacked, match="over 1 MiB"):
            unpack(packed, name)
        assert tracemalloc.get_traced_memory()[1] < 16 * LIMIT
    finally:
        tracemalloc.stop()


def test_header_that_asks_for_memory_is_refused() -> None:
    """The header of an LZMA stream says how large its dictionary is, up to gigabytes."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**28}]
    small = lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}])
    assert unpack(small, "xz") == b"x"
    packed = lzma.LZMACompressor(filters=filters)
    with pytest.raises(NotUnpacked, match="but is not: Memory usage limit"):
        unpack(packed.compress(b"x") + packed.flush(), "xz")


@given(st.binary(), st.sampled_from([*METHODS, "", "snappy", None, 7, ["zlib"]]))
def test_whatever_it_is_one_error_says_so(body: bytes, method: object) -> None:
    """What is no such stream, or packed by nobody knows what, is told by the one error of the module."""
    with suppress(NotUnpacked):
        unpack(body, method)


def test_all_of_kombus_methods_are_known() -> None:
    """One that kombu adds is to be added here."""
    assert set(compression.encoders()) | set(compression._aliases) <= set(unpacking._UNPACKERS)
