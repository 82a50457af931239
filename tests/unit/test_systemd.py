"""The units of docs/health.md, which people copy."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = (Path(__file__).parents[2] / "docs/health.md").read_text()
UNITS = dict(re.findall(r"^```ini\n# /etc/systemd/system/(\S+)\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("slip", ["", "Slip=1\n"], ids=["as documented", "with a slip"])
def test_systemd_knows_every_line(slip: str, tmp_path: Path) -> None:
    """A key that systemd does not know is passed over in silence when a unit starts."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd here, as in a container")  # also in CI: no part of the project runs on it
    assert sorted(UNITS) == ["proj-alive@.service", "proj-alive@.timer", "proj-worker@.service"]
    for name, text in UNITS.items():
        there = text.replace("/srv/proj/.venv/bin", str(Path(sys.executable).parent))
        (tmp_path / name).write_text(there.replace("]\n", f"]\n{slip}", 1))
    done = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / name for name in UNITS)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # It tells of other units of the machine too.
    about = [line for line in done.stderr.splitlines() if any(name in line for name in UNITS)]
    assert len(about) == (len(UNITS) if slip else 0), done.stderr


def test_a_timer_has_a_first_time() -> None:
    """A timer that counts from the last time of its service alone never starts it."""
    timer = UNITS["proj-alive@.timer"]
    assert "OnUnitActiveSec=" in timer
    assert re.search(r"^On(Active|Boot)Sec=", timer, re.MULTILINE)
