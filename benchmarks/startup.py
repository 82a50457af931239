"""Measure start-up times: `proj --help`, `proj health`, and `proj enqueue` compared with importing Celery.

Alternates the programs, so that noise affects all of them. Prints medians and quartiles, and starts a
private broker.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from proj.health import heartbeat
from proj.health.heartbeat import Heartbeat
from proj.private_node.node import BrokerNode

#: Runs of each program.
ROUNDS = 30

BIN = Path(sys.executable).parent


def measure(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def beat(folder: str) -> None:
    """Write a heartbeat for the probe, as if this process were a worker."""
    pid, now = os.getpid(), time.monotonic()
    process = heartbeat.identity(pid) or ""
    beat = Heartbeat("w1@host", pid, process, heartbeat.machine(), heartbeat.READY, now, now + 3600)
    heartbeat.write(heartbeat.file_of(folder, beat.worker, pid), beat)


def main() -> None:
    programs = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "proj --help": [str(BIN / "proj"), "--help"],
        "proj health --live": [str(BIN / "proj"), "health", "--live"],
        "python -c 'import celery'": [sys.executable, "-c", "from celery import Celery; Celery().amqp"],
        "proj enqueue add 2 3": [str(BIN / "proj"), "enqueue", "add", "2", "3"],
    }
    with tempfile.TemporaryDirectory() as folder, BrokerNode(Path(folder) / "rabbitmq") as node:
        env = os.environ | {"CELERY_BROKER_URL": node.url, "PROJ_STATE_DIR": folder}
        beat(folder)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for _ in range(ROUNDS):
            for name, command in programs.items():
                times[name].append(measure(command, env))
    medians = {}
    print(f"{'':<26} {'wall clock, ms':>24} {'CPU, ms':>24}   (median and quartiles of {ROUNDS} runs)")
    for name, taken in times.items():
        cells = []
        for kind in zip(*taken, strict=True):
            low, middle, high = statistics.quantiles([second * 1000 for second in kind], n=4)
            cells.append(f"{middle:6.1f} ({low:.1f} to {high:.1f})")
            medians[name, len(cells)] = middle
        print(f"{name:<26} {cells[0]:>24} {cells[1]:>24}")
    over = medians["proj enqueue add 2 3", 2] - medians["python -c 'import celery'", 2]
    print()
    for name in ("proj --help", "proj health --live"):
        print(f"{name} takes {medians[name, 1]:.0f} ms (goal: at most 150)")
    print(f"proj enqueue takes {over:.0f} ms of CPU more than importing Celery (goal: at most 300)")


main()
