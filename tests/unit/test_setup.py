"""scripts/setup, before it installs anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_folder_that_dot_venv_is_a_link_to_is_not_emptied(tmp_path: Path) -> None:
    """It belongs to another checkout; one line says what to do."""
    checkout, theirs = tmp_path / "checkout", tmp_path / "theirs"
    for folder in (checkout, theirs):
        folder.mkdir()
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    (theirs / "precious").touch()
    (checkout / ".venv").symlink_to(theirs)
    env = os.environ | {
        "PYTHON": sys.executable,
        "PIP_NO_INDEX": "1",
    }  # no installation, should it come to that

    done = subprocess.run([checkout / "scripts/setup"], env=env, capture_output=True, text=True)

    assert done.returncode == 69
    assert done.stderr == f"Error: .venv is a link to {theirs}, which set-up would empty: remove the link\n"
    assert (theirs / "precious").exists()
