"""One command runs all of it."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from photos import measure
from tests.lib.bundle import Bundle
from tests.lib.photos import EXAMPLE, plain
from tests.lib.ports import free_port
from tests.lib.waiting import PATIENCE, eventually

ROOT = Path(__file__).parents[2]


@pytest.mark.used_vhost
def test_worker_and_page_run_until_ctrl_c(bundle: Bundle) -> None:
    """As `make photos` does, where a broker runs already: it prints the address, and Ctrl-C ends all."""
    env = {"PHOTOS_PORT": str(free_port()), "PYTHONUNBUFFERED": "1"}
    log = bundle.folder / "up.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, ROOT / "scripts/up", EXAMPLE],
            env=bundle.env | env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as up,
    ):
        try:
            eventually("the page is there", lambda: "photos: http" in log.read_text(), seen=log.read_text)
            (url,) = re.findall(r"^page +(http://\S+)$", log.read_text(), re.MULTILINE)
            photo = measure.upload(url, "one.jpg", plain()).body["id"]

            def is_done() -> bool:
                with urllib.request.urlopen(f"{url}/changes", timeout=PATIENCE) as answer:
                    return f"/thumbnails/{photo}/large.jpg" in answer.read().decode()

            eventually("its thumbnails are made", is_done, seen=log.read_text)
            programs = psutil.Process(up.pid).children(recursive=True)
            assert len(programs) >= 3
        finally:
            os.killpg(up.pid, signal.SIGINT)
        assert up.wait(PATIENCE) == 130
        assert psutil.wait_procs(programs, PATIENCE)[1] == []
