"""Each row of `docs/celery.md` has a test, and each test that is bound to a row finds it."""

from collections import Counter

from tests.celery_docs import calling, canvas, tasks, test_workers
from tests.lib import celery_docs


def test_each_row_has_a_test_and_each_test_its_row() -> None:
    """By its name: a row that is renamed, or a test that is deleted, is noticed."""
    rows = Counter(name for name, _ in celery_docs.rows())
    assert len(rows) > 100
    assert [name for name, count in rows.items() if count > 1] == []
    examples = {name for module in (calling, canvas, tasks, test_workers) for name in module.EXAMPLES}
    assert examples | set(celery_docs.marked()) == rows.keys()


def test_each_row_says_whether_it_works() -> None:
    """And if not, how it differs, or why and what to use instead."""
    for name, says in celery_docs.rows():
        assert (
            says.startswith(("works differently: ", "refused: ")) or says.split()[0].strip(":;,") == "works"
        ), name
        assert not says.startswith("refused: ") or ";" in says, f"{name}: what instead?"
