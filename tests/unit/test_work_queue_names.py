"""Names that work queues can have."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proj import config
from proj.errors import ConfigError


@pytest.fixture(autouse=True)
def _settings_of_this_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELERY_BROKER_URL")
    monkeypatch.setattr(config, "load", config.load.__wrapped__)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("a b", "holds a space"),
        ("a*", "holds a space, \\* or #"),
        ("#", "holds a space, \\* or #"),
        ("a\tb", "holds a space"),
        (",", "'' is no name"),
        ("slow,,mail", "'' is no name"),
        ("slow,", "'' is no name"),
        ("slow,mail,slow", "'slow' is there already"),
        ("proj.tasks", "'proj.tasks' is there already"),
        ("proj.dead", "are not for tasks"),
        ("proj.dead.reader", "are not for tasks"),
        ("celery_delayed_27", "are not for tasks"),
        ("amq.topic", "are not for tasks"),
        ("delayed", "calls all delay queues"),
        ("0", "delays are routed by the words 0 and 1"),
        ("1.slow", "delays are routed by the words 0 and 1"),
        ("q" * 200, "longer than 199 bytes"),
        ("ü" * 100, "longer than 199 bytes"),
        ("tasks", "'tasks' would also get what is for 'proj.tasks'"),
        ("slow.proj.tasks", "'proj.tasks' would also get what is for 'slow.proj.tasks'"),
        ("mail.slow,slow", "'slow' would also get what is for 'mail.slow'"),
        ("slow,mail.slow", "'slow' would also get what is for 'mail.slow'"),
    ],
)
def test_names_that_no_work_queue_can_have(monkeypatch: pytest.MonkeyPatch, names: str, reason: str) -> None:
    """Each is refused in one line, as a wrong setting."""
    monkeypatch.setenv("PROJ_QUEUES", names)

    with pytest.raises(ConfigError, match=f"PROJ_QUEUES cannot be used: .*{reason}") as caught:
        config.load()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "names", ["slow", "slow, mail", "q" * 199, "10.slow", "tasks2", "a.0", "proj.dea", "été"]
)
def test_names_that_work_queues_can_have(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """They are declared in the order of the setting, after the default one."""
    monkeypatch.setenv("PROJ_QUEUES", names)

    found = [queue.name for queue in config.load().topology.work_queues]
    assert found == ["proj.tasks", *names.replace(" ", "").split(",")]


_WORDS = st.sampled_from(["proj", "tasks", "slow", "a", "0", "1", "10", "", "*", "#"])


_NAMES = st.lists(st.lists(_WORDS, max_size=4).map(".".join), max_size=5)


@given(names=_NAMES, delay=st.lists(st.sampled_from("01"), max_size=3))
def test_no_message_reaches_two_queues(names: list[str], delay: list[str]) -> None:
    """Whatever names are accepted together, the key of each, also delayed, is bound to its queue alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROJ_QUEUES", ",".join(names))
        try:
            topology = config.load().topology
        except ConfigError:
            return
    bound = [each for each in (*topology.bindings, *topology.delay_bindings) if each.source == "proj"]
    for queue in topology.work_queues:
        key = [*delay, *queue.name.split(".")]
        assert {each.destination for each in bound if _fits(each.key.split("."), key)} == {queue.name}
        assert topology.work_queue_of(".".join(key)) == queue


def _fits(pattern: list[str], key: list[str]) -> bool:
    """Whether a topic exchange sends a message with this routing key over a binding with this pattern."""
    match pattern:
        case []:
            return not key
        case ["#", *rest]:
            return any(_fits(rest, key[skipped:]) for skipped in range(len(key) + 1))
        case [word, *rest]:
            return bool(key) and word in {"*", key[0]} and _fits(rest, key[1:])
    raise AssertionError(pattern)
