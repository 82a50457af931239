"""The containers of docker-compose.yml, under a name, with ports, volumes and an image of their own."""

import json
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, Self

from tests.lib.bundle import BIN
from tests.lib.waiting import eventually

ROOT: Final = Path(__file__).parents[2]

#: Seconds for the images to be fetched or built, or for all containers to be ready.
LONG: Final = 300

#: Images that Docker must have, or be able to fetch.
IMAGES: Final = re.findall(
    r"^\s*(?:FROM|image:) ([\w./-]+:[\w.-]+)", (ROOT / "Dockerfile").read_text(), re.M
) + re.findall(r"^\s*image: ([\w.:/-]+)$", (ROOT / "docker-compose.yml").read_text(), re.M)


def has_compose() -> bool:
    return bool(shutil.which("docker")) and docker("compose", "version", check=False).returncode == 0


def why_not() -> str | None:
    """The reason why no container can be run here, None when they can."""
    if not has_compose():
        return "there is no `docker compose`"
    try:
        if docker("info", check=False).returncode:
            return "no Docker engine answers"
        for image in set(IMAGES):
            known = docker("image", "inspect", image, check=False).returncode == 0
            if not known and docker("pull", "--quiet", image, check=False).returncode:
                return f"docker has no image {image}, and cannot fetch it"
    except subprocess.TimeoutExpired as error:
        return f"docker does not answer within {error.timeout:g} s"
    return None


def docker(
    *words: str, check: bool = True, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["docker", *words],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert not check or done.returncode == 0, f"docker {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done


class Stack:
    """What `docker compose up` runs; all of it is gone when the context ends."""

    def __init__(self, folder: Path, *options: str) -> None:
        #: Of `docker compose`: further files, profiles.
        self.options = options
        self.name = f"proj-test-{secrets.token_hex(4)}"
        self.images = {"WORKER_IMAGE": f"{self.name}:test", "PHOTOS_IMAGE": f"{self.name}-photos:test"}
        text = (ROOT / ".env.example").read_text()
        self.passwords = {name: secrets.token_hex(16) for name in re.findall(r"^(\w+)=$", text, re.M)}
        # Port 0 is a free one.
        ports = dict.fromkeys(re.findall(r"^#(PUBLISH_\w+)=", text, re.M), "0")
        self.env_file = folder / "env"
        self.settings = self.passwords | ports | self.images | {"WORKER_SLOTS": "1"}
        self.env_file.write_text("".join(f"{name}={value}\n" for name, value in self.settings.items()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("--profile", "operator", "down", "--volumes", "--timeout", "5")
        docker("image", "rm", "--force", *self.images.values())

    def compose(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        # What the shell has set would win over the file.
        env = {name: value for name, value in os.environ.items() if name not in self.settings}
        where = ("--project-name", self.name, "--env-file", str(self.env_file), *self.options)
        return docker("compose", *where, *words, check=check, env=env)

    def up(self, workers: int) -> None:
        """Return when every container is healthy."""
        self.compose("up", "--detach", "--wait", "--scale", f"worker={workers}")

    def containers(self, service: str) -> list[str]:
        """The ids of those that run."""
        return self.compose("ps", "--quiet", service).stdout.split()

    def kill(self, container: str) -> None:
        """SIGKILL it, and prove that it is dead."""
        docker("kill", container)
        assert self.state(container)["ExitCode"] == 137

    def state(self, container: str) -> Any:
        return json.loads(docker("inspect", "--format", "{{json .State}}", container).stdout)

    def port(self, service: str, port: int) -> str:
        """Where this machine reaches it."""
        return self.compose("port", service, str(port)).stdout.strip()

    # --- The programs, and what they have left

    def enqueue_here(self, *words: str) -> list[str]:
        """Run `proj enqueue` on this machine, as the user who may do nothing else. Returns the ids."""
        host, port = self.port("rabbitmq", 5672).rsplit(":", 1)
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AMQP_", "CELERY_", "PROJ_"))
        }
        done = subprocess.run(
            [BIN / "proj", "enqueue", *words],
            cwd=self.env_file.parent,
            env=env
            | {
                "AMQP_HOST": host,
                "AMQP_PORT": port,
                "AMQP_VHOST": "proj",
                "AMQP_USER": "proj-producer",
                "AMQP_PASSWORD": self.passwords["RABBITMQ_PRODUCER_PASSWORD"],
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def enqueue_there(self, *words: str) -> list[str]:
        """Run `proj enqueue` in a worker's container. Returns the ids."""
        return self.compose("exec", "-T", "worker", "proj", "enqueue", *words).stdout.split()

    def dead_letters(self) -> Any:
        done = self.compose("run", "--rm", "-T", "operator", "proj", "dead", "list", "--json")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def states(self) -> dict[str, str]:
        """The stored state of each task."""
        query = "select task_id, status from celery_taskmeta"
        done = self.compose(
            "exec", "-T", "postgres", "psql", "--username=proj", "-At", "-F ", "-c", query, check=False
        )
        return dict(line.split() for line in done.stdout.splitlines()) if not done.returncode else {}

    def done(self, ids: list[str]) -> set[str]:
        states = self.states()
        return {task_id for task_id in ids if states.get(task_id) == "SUCCESS"}

    def all_done(self, ids: list[str]) -> None:
        try:
            eventually("every task has its result", lambda: self.done(ids) == set(ids), patience=LONG)
        except AssertionError as error:
            raise AssertionError(
                f"{error}: {len(set(ids) - self.done(ids))} of {len(ids)} are missing"
            ) from None

    def logged(self, words: str) -> bool:
        """Whether a worker has logged that."""
        return words in self.compose("logs", "--no-color", "worker").stdout

    def received(self, task_id: str) -> bool:
        return self.logged(f"[{task_id}] received")
