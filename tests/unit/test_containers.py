"""What Dockerfile, docker-compose.yml and .env.example must hold to, on a machine that has no Docker too."""

import http.server
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from proj import config
from proj.private_node.node import ADVANCED_CONFIG
from tests.lib.serving import serving

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
CLUSTER = (ROOT / "deploy/cluster/docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
BROKER_CONF = (ROOT / "deploy/rabbitmq/rabbitmq.conf").read_text()


def _sections(text: str, indent: int) -> dict[str, str]:
    """The text below each key that stands at this indent; enough of YAML for how our file is written."""
    found: dict[str, str] = {}
    for part in re.split(rf"^(?= {{{indent}}}[\w.<-]+:)", text, flags=re.M)[1:]:
        key, _, value = part.partition(":")
        # What follows on the same line stands without its indent; what is below keeps it.
        found[key.strip()] = re.sub(r"^ *#.*\n?", "", value, flags=re.M).lstrip(" ").rstrip()
    return found


def _services() -> Mapping[str, dict[str, str]]:
    top = _sections(COMPOSE, 0)
    shared = {value.split()[0][1:]: _sections(value, 2) for key, value in top.items() if key.startswith("x-")}
    shared["proj"] = shared["every-service"] | shared["proj"]
    services = {}
    for name, text in _sections(top["services"], 2).items():
        keys = _sections(text, 4)
        services[name] = shared[keys.pop("<<").removeprefix("*")] | keys
        if text.startswith("&"):
            shared[text.split()[0][1:]] = services[name]
    return services


SERVICES = _services()

#: It runs one command and ends.
LASTING = {name: keys for name, keys in SERVICES.items() if keys["restart"] == "unless-stopped"}


def test_the_services_are_those_that_are_meant() -> None:
    """What the tests below look at is not nothing."""
    workers = {"worker", "worker-slow", "worker-photos"}
    assert set(LASTING) == {"rabbitmq", "postgres", *workers, "beat", "ingest", "flower", "photos"}
    assert set(SERVICES) - set(LASTING) == {"operator"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    """No right that it does not need, no more of the machine than it may have, no endless log."""
    service = SERVICES[name]

    assert service["read_only"] == "true"
    assert service["cap_drop"] == "[ALL]"
    assert "no-new-privileges:true" in service["security_opt"]
    assert "max-size" in service["logging"]
    assert {"cpus", "mem_limit", "pids_limit"} <= service.keys()
    assert re.search(r":[\w.-]+\}?$", service["image"]), "a tag"
    # `docker compose up --scale` cannot name two containers alike.
    assert "container_name" not in service
    # In the official images the user is root until the entrypoint drops it.
    assert "build" in service or service["user"] not in {"", "root", "0"}


@pytest.mark.parametrize("name", LASTING)
def test_every_service_is_looked_after(name: str) -> None:
    """It says whether it is ready, is started again, has time to stop, and keeps what it knows."""
    service = LASTING[name]

    assert {"healthcheck", "stop_grace_period"} <= service.keys()
    assert name.startswith(("worker", "ingest", "beat")) or "volumes" in service


def test_a_worker_of_a_further_queue_is_an_example() -> None:
    """It is like the other ones, but for its queue, and runs when it is asked for; all know of the queue."""
    one, other = SERVICES["worker"], SERVICES["worker-slow"]

    assert other["profiles"] == "[slow]"
    assert other["command"] == one["command"].replace("worker,", "worker, -Q, slow,")
    assert {key for key in one | other if one.get(key) != other.get(key)} == {"command", "profiles", "scale"}
    assert "PROJ_QUEUES: &queues ${WORK_QUEUES:-}" in one["environment"]
    assert "PROJ_QUEUES: *queues" in SERVICES["flower"]["environment"]
    assert "<<: *worker" in SERVICES["operator"]["environment"]


def test_the_example_of_the_photos_is_a_profile() -> None:
    """Its page and its worker have one image and one folder of photos, and know its tasks and its queue."""
    worker, page = SERVICES["worker-photos"], SERVICES["photos"]

    for service in (worker, page):
        assert service["profiles"] == "[photos]"
        assert service["volumes"].strip() == "- photos:/var/lib/photos"
        assert service["image"] == "${PHOTOS_IMAGE:-proj-photos:0.1.0}"
    assert "-Q, photos" in worker["command"]
    assert "{context: ., target: photos}" in worker["build"]
    assert "PROJ_TASKS: photos.tasks" in worker["environment"]
    assert "<<: *photos" in page["environment"]
    assert "proj-producer" in page["environment"]
    stage = DOCKERFILE.partition("FROM runtime AS photos\n")[2].partition("\nFROM ")[0]
    assert "\nUSER proj\n" in stage
    assert "PHOTOS_DIR=/var/lib/photos" in stage


def test_ports_are_those_of_this_machine_alone() -> None:
    """Docker's ports go past a firewall. A worker has none, or there could be only one."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", "").split("- ")[1:]]

    assert len(ports) == 5
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert "ports" not in SERVICES["worker"]
    assert "ports" not in SERVICES["postgres"]


def test_a_copy_of_the_example_that_was_not_edited_is_refused() -> None:
    """Each password must be set and not be empty, and the example has none."""
    needed = set(re.findall(r"\$\{(\w+):\?", COMPOSE + CLUSTER))
    optional = set(re.findall(r"\$\{(\w+):-", COMPOSE + CLUSTER))

    assert set(re.findall(r"\$\{?(\w+)", COMPOSE + CLUSTER)) == needed | optional
    assert set(re.findall(r"^(\w+)=(.*)$", EXAMPLE, re.M)) == {(name, "") for name in needed}
    assert set(re.findall(r"^#(\w+)=", EXAMPLE, re.M)) == optional
    assert not [
        line for line in COMPOSE.splitlines() if "PASSWORD:" in line and not re.search(r"\$\{|\*", line)
    ]


def test_the_file_of_passwords_means_nothing_to_programs_of_this_machine() -> None:
    """They read `.env` too, and would look for a broker by the name that it has among the containers."""
    names = set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.M))

    assert not names & {name.upper() for name in config.Settings.model_fields}
    assert not [name for name in names if name.startswith(("PROJ_", "CELERY_", "AMQP_", "PG"))]
    config._refuse_slips(names)


def test_times_agree() -> None:
    """A worker is killed after its grace, and the broker waits as long as workers think it does."""
    worker = SERVICES["worker"]
    grace = float(_sections(worker["environment"], 6)["PROJ_SHUTDOWN_GRACE"])

    assert grace + 10 <= float(worker["stop_grace_period"].removesuffix("s"))
    assert worker["environment"].count("PROJ_CONSUMER_TIMEOUT: *consumer-timeout") == 1
    assert f"PROJ_CONSUMER_TIMEOUT: &consumer-timeout {config.CONSUMER_TIMEOUT}" in COMPOSE
    assert "\nconsumer_timeout = $(PROJ_CONSUMER_TIMEOUT)000\n" in BROKER_CONF


def test_the_broker_counts_the_memory_of_its_container() -> None:
    """Else it would let the container be killed before it blocks publishers."""
    limit = SERVICES["rabbitmq"]["mem_limit"]
    assert f"\ntotal_memory_available_override_value = {limit.upper()}B\n" in BROKER_CONF


def test_the_image_ends_as_a_user_that_is_not_root_with_signals_reaching_the_worker() -> None:
    """In exec form: the shell that the other form puts in between keeps SIGTERM to itself."""
    last = DOCKERFILE.rpartition("\nFROM ")[2]

    assert re.findall(r"^USER (\w+)$", last, re.M)[-1] not in {"root", "0"}
    assert re.search(r'^CMD \["celery",', last, re.M)
    assert not re.search(r"^(CMD|ENTRYPOINT|HEALTHCHECK.* CMD) [^\[]", DOCKERFILE, re.M)
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.M)
    assert all(":" in image or image in stages for image in re.findall(r"^FROM (\S+)", DOCKERFILE, re.M))


def test_what_is_installed_in_the_image_is_checked_against_its_hash() -> None:
    """Each time that pip may fetch something."""
    commands = re.sub(r"\\\n", " ", DOCKERFILE)
    fetching = [
        line for line in re.findall(r"pip .*?(?:install|wheel) .*", commands) if "--no-index" not in line
    ]

    assert len(fetching) == 4
    assert [line for line in fetching if "--require-hashes" not in line] == [
        line for line in fetching if line.endswith("--no-deps --wheel-dir /dist .")
    ]


def test_no_file_of_passwords_reaches_the_image() -> None:
    """Only what is named enters the build; the patterns begin with refusing all."""
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().split("\n") if line[:1] not in {"", "#"}
    ]

    assert patterns[0] == "*"
    assert ".env" in (ROOT / ".gitignore").read_text().split()
    assert set(re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.M)) <= {
        "requirements.txt pyproject.toml",
        "requirements.txt",
        "LICENSE README.md pyproject.toml",
        "proj",
        "examples/photos/requirements.txt",
        "examples/photos/photos",
    }


def test_the_image_has_the_version_of_the_project() -> None:
    """So that an older one can be gone back to by its name."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert SERVICES["worker"]["image"] == f"${{WORKER_IMAGE:-proj:{version}}}"
    assert f"#WORKER_IMAGE=proj:{version}" in EXAMPLE
    assert SERVICES["photos"]["image"] == f"${{PHOTOS_IMAGE:-proj-photos:{version}}}"
    assert f"#PHOTOS_IMAGE=proj-photos:{version}" in EXAMPLE


def test_the_broker_tries_again_as_soon_as_the_private_node() -> None:
    """What cannot be said in rabbitmq.conf is the same for both."""
    advanced = (ROOT / "deploy/rabbitmq/advanced.config").read_text()
    assert re.sub("^%.*\n", "", advanced, flags=re.M).strip() == ADVANCED_CONFIG
    assert "/advanced.config:/etc/rabbitmq/advanced.config:ro" in SERVICES["rabbitmq"]["volumes"]


NODES = ["rabbitmq", "rabbitmq-2", "rabbitmq-3"]


def test_the_nodes_of_a_cluster_know_each_other_by_their_host_names() -> None:
    """One that has another name joins nothing."""
    conf = (ROOT / "deploy/cluster/rabbitmq.conf").read_text()
    services = _sections(_sections(CLUSTER, 0)["services"], 2)
    hosts = re.findall(r"^    hostname: (\S+)$", COMPOSE + CLUSTER, re.M)

    assert re.findall(r"nodes\.\d = rabbit@(\S+)$", conf, re.M) == hosts == NODES
    assert f"target_cluster_size_hint = {len(NODES)}\n" in conf
    for name in NODES:
        keys = _sections(services[name], 4)
        assert "RABBITMQ_CLUSTER_COOKIE" in keys["environment"] or keys["environment"] == "*cookie"
        assert "./deploy/cluster/rabbitmq.conf:/etc/rabbitmq/conf.d/30-cluster.conf:ro" in keys["volumes"]
    for name in NODES[1:]:
        assert "service: rabbitmq" in services[name]
        assert f"- {name}:/var/lib/rabbitmq" in services[name]
        assert f"\n  {name}:" in CLUSTER.partition("\nvolumes:")[2]


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"rabbitmq", "postgres"}))
def test_every_program_knows_all_nodes(name: str) -> None:
    """As the user that it is on a single node, and in the same virtual host."""
    services = _sections(_sections(CLUSTER, 0)["services"], 2)
    text = services["worker"] if services[name] == "*worker" else services[name]
    (urls,) = re.findall(r"CELERY_BROKER_URL: (\S+)", text)
    user = re.findall(r"AMQP_USER: (\S+)", SERVICES[name]["environment"])
    (user,) = user or re.findall(r"AMQP_USER: (\S+)", SERVICES["worker"]["environment"])

    parts = [urlsplit(url) for url in urls.split(";")]
    assert [part.hostname for part in parts] == NODES
    assert {(part.username, part.path) for part in parts} == {(user, "/proj")}
    assert len({part.password for part in parts}) == 1
    for url in re.findall(r"PROJ_MANAGEMENT_URL: (\S+)", SERVICES[name]["environment"]):
        assert f"PROJ_MANAGEMENT_URL: {';'.join(url.replace(NODES[0], node) for node in NODES)}" in text


@pytest.mark.parametrize("status", [200, 500])
def test_flower_itself_is_asked_whether_it_is_well(status: int) -> None:
    """Docker tells its containers of its user's proxy, which does not reach them."""

    class Flower(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status if self.path == "/healthcheck" else 404)
            self.end_headers()

    check = re.findall(r'^ +test: \[CMD, python, -c, "(.*)"\]$', SERVICES["flower"]["healthcheck"], re.M)[0]
    with serving(Flower) as url:
        program = check.replace("5555", str(urlsplit(url).port))
        proxy = {"http_proxy": "http://127.0.0.1:1", "no_proxy": ""}
        done = subprocess.run([sys.executable, "-c", program], env=os.environ | proxy)

    assert (done.returncode == 0) == (status == 200)
