"""The list of other projects' private parts that the code uses."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_lists_the_markers_in_the_code() -> None:
    """`docs/upstream.md` is what `make upstream` writes."""
    script = runpy.run_path(str(ROOT / "scripts/upstream"))
    assert script["FILE"].read_text() == script["page"](), "Run: make upstream"
