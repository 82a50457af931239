"""What is not imported: starting fast is a matter of that, and not of a clock."""

import pytest

from tests.lib.bundle import Bundle
from tests.lib.refusal import refuses

HELP = """
import contextlib, io, json, sys
sys.argv = ["proj", "--help"]
sys.stdout, real = io.StringIO(), sys.stdout
from proj.__main__ import main
with contextlib.suppress(SystemExit):
    main()
shown, sys.stdout = sys.stdout.getvalue(), real
print(json.dumps([shown.startswith("Usage: proj"), sorted({name.split(".")[0] for name in sys.modules})]))
"""

PUBLISH = """
import json, sys
from proj.tasks import add
add.delay(2, 3)
print(json.dumps([True, sorted({name.split(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize(
    ("code", "heavy"),
    [(HELP, {"celery", "kombu", "pydantic", "rich"}), (PUBLISH, {"sqlalchemy", "rich"})],
    ids=["help", "publish"],
)
def test_nothing_heavy_is_imported(bundle: Bundle, code: str, heavy: set[str]) -> None:
    """`proj --help` imports no Celery, and to publish needs no SQLAlchemy."""
    worked, modules = bundle.python(code, forked=False)

    assert worked
    assert not heavy & set(modules)


def test_publishing_does_not_need_the_result_store(bundle: Bundle) -> None:
    """A result store that is down does not keep a message from being published."""
    done = bundle.proj(
        "enqueue", "add", "1", "2", env={"CELERY_RESULT_BACKEND": "db+sqlite:////proc/nowhere/results"}
    )

    assert done.returncode == 0, done.stderr
    assert bundle.depth("proj.tasks") == 1


def test_result_store_that_cannot_be_read_is_69(bundle: Bundle) -> None:
    """To read a result of it ends with one line."""
    said, url = "the result store cannot be read: ", "db+sqlite:////proc/nowhere/results"
    refuses(bundle, 69, said, command=("result", "any"), CELERY_RESULT_BACKEND=url)
