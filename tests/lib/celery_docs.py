"""The rows of `docs/celery.md`, and the tests that each of them has.

A test is bound to a row by the mark `celery_docs("Page: row")`, or by a table of examples: `EXAMPLES` of a
module of `tests/celery_docs`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/celery.md"

_ROW: Final = re.compile(r"\| (.+?) \| (.+) \|")
_NO_MARKS: Final = str.maketrans("", "", "`\\")


def rows() -> list[tuple[str, str]]:
    """Each row as `Page: row`, without marks, and what it says of the row."""
    found, page = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            page = line.removeprefix("## ")
        elif (row := _ROW.fullmatch(line)) and row[1] not in ("---", "Celery's"):
            found.append((f"{page}: {row[1].translate(_NO_MARKS)}", row[2]))
    return found


def marked() -> Iterator[str]:
    """What the tests are marked with."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        if "celery_docs(" in (text := path.read_text()):
            yield from _marks(ast.parse(text))


def _marks(tree: ast.Module) -> Iterator[str]:
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.celery_docs":
            yield from (ast.literal_eval(argument) for argument in call.args)
