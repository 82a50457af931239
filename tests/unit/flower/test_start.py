"""Flower's defaults."""

import re
from pathlib import Path

from proj import config
from proj.flower import start

DOCS = (Path(__file__).parents[3] / "docs/flower.md").read_text()


def test_defaults_are_those_of_the_documentation() -> None:
    """Each option that we choose otherwise has a row, with its number."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.+?) \|", DOCS, re.MULTILINE)
    told = {name: value for names, value in rows for name in re.findall(r"\w+", names)}
    ours = start.defaults(config.load())

    assert ours.keys() == told.keys()
    assert told["address"] == f"`{ours['address']}`"
    assert ours["read_only"] is ours["persistent"] is True
    assert told["state_save_interval"] == f"{ours['state_save_interval'] / 1000:g} s"
    assert told["max_tasks"] == f"{ours['max_tasks']:,}"
    assert told["max_workers"] == f"{ours['max_workers']:,}"
    assert told["purge_offline_workers"] == f"{ours['purge_offline_workers'] / 3600:g} h"
