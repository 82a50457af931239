"""A `celery -A proj flower` of its own, and what it answers."""

import base64
import re
import signal
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from itertools import count
from typing import Self

from tests.lib import fork_server
from tests.lib.bundle import BIN, Bundle
from tests.lib.waiting import PATIENCE, eventually

#: What tests look for where no password may be.
PASSWORD = "s3cret"

#: The login that tests give it.
LOGIN = f"anna:{PASSWORD}"

#: Milliseconds between two savings, for tests that wait for one.
SAVE_INTERVAL = 200

_number = count(1)


@dataclass(frozen=True)
class Answer:
    """What Flower answers to a request."""

    status: int
    headers: dict[str, str]
    text: str


class Flower:
    """Flower on a free port of this machine."""

    def __init__(
        self, bundle: Bundle, *options: str, env: dict[str, str] | None = None, app: str = "proj"
    ) -> None:
        self.log = bundle.folder / f"flower-{next(_number)}.log"
        command = [str(BIN / "celery"), "-A", app, "flower", "--port=0", *options]
        with self.log.open("wb") as output:
            self.process = fork_server.popen(
                command,
                cwd=bundle.folder,
                env=bundle.env | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def url(self) -> str:
        match = re.search(r"Visit me at (https?)://\S+?:(\d+)", self.text())
        assert match, self.text()
        return f"{match[1]}://127.0.0.1:{match[2]}"

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def ready(self) -> Self:
        def answers() -> bool:
            assert self.process.poll() is None, self.text()
            return "Visit me at" in self.text() and self.get("/healthcheck").status == 200

        eventually("Flower answers", answers)
        return self

    def says(self, text: str) -> None:
        eventually(f"Flower says {text!r}", lambda: text in self.text(), seen=self.text)

    def hears_events(self) -> Self:
        self.says("Connected to ")
        return self

    def get(self, path: str, login: str = "", **headers: str) -> Answer:
        return self.ask("GET", path, login, **headers)

    def ask(self, method: str, path: str, login: str = "", **headers: str) -> Answer:
        """What it answers; the underscores of header names become hyphens."""
        request = urllib.request.Request(
            self.url + path, method=method, data=b"" if method == "POST" else None
        )
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        if login:
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return Answer(response.status, dict(response.headers), response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read().decode("utf-8", "replace"))

    def stop(self) -> int:
        """SIGTERM; returns its exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL, and proof that it is gone."""
        if self.process.poll() is None:
            self.process.kill()
            assert self.process.wait(PATIENCE) == -signal.SIGKILL
