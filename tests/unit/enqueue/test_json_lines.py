"""Lines come out as they are in the file, wherever it is read in parts."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proj.enqueue import json_lines


@given(
    st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), max_size=8),
    st.booleans(),
    st.integers(1, 9),
    st.integers(1, 12),
)
def test_any_lines_in_any_parts(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ends: bool, chunk: int, longest: int
) -> None:
    """Those that are too long are none, and each has its place; a last one needs no end."""
    path = Path(tmp_path_factory.getbasetemp()) / "lines"
    text = b"\n".join(lines) + b"\n" * ends
    path.write_bytes(text)
    mark = b"\xef\xbb\xbf"  # is taken away where the first part has all of it
    unmarked = text.removeprefix(mark) if chunk >= len(mark) else text
    expected = [None if len(line) > longest else line for line in unmarked.split(b"\n")]
    if not text or ends or expected[-1] == b"":
        expected.pop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "_CHUNK", chunk)
        patch.setattr(json_lines, "MAX_LINE", longest)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            reader = json_lines.LineReader(descriptor, lambda: None)
            assert list(reader) == expected
            assert reader.position == reader.size == len(text)
        finally:
            os.close(descriptor)
