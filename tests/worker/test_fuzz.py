"""Whatever stands in a work queue is executed, suppressed, delayed or a dead letter, and the worker lives.

Others each time: `pytest tests/worker/test_fuzz.py --fuzz-messages=9999 --fuzz-seed=random`.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Final

import hypothesis
import pytest

from tests.lib.bundle import Bundle
from tests.lib.fuzzing import Fuzzing, Verdict
from tests.lib.messages import MESSAGES, Message
from tests.lib.vhosts import VirtualHosts
from tests.lib.wire import Raw, Text

#: What a worker gets at once.
BATCH: Final = 250

#: How it says that the messages were chosen by chance.
RANDOM: Final = "random"


#: What RabbitMQ 4 takes in one message, without what is around it.
LONG: Final = Text(16 * 2**20 - 2_000)


@pytest.fixture(scope="module", params=["prefork", "threads"])
def fuzzing(
    vhosts: VirtualHosts, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fuzzing]:
    folder = tmp_path_factory.mktemp("fuzz")
    with vhosts.lend(folder) as bundle:
        fuzzing = Fuzzing(bundle, f"--pool={request.param}", slots=2)
        fuzzing.start()
        yield fuzzing


def test_nothing_is_lost_whatever_is_wrong_with_it(fuzzing: Fuzzing, pytestconfig: pytest.Config) -> None:
    """Messages, each wrong in one to three places, and the worker is the same process."""
    count, seed = pytestconfig.getoption("fuzz_messages"), pytestconfig.getoption("fuzz_seed")
    if seed == RANDOM:
        seed = random.randrange(2**32)
    report = pytestconfig.get_terminal_writer().line
    report(f"--fuzz-messages={count} --fuzz-seed={seed or ''}")
    messages = fuzzing.number(_drawn(count, seed))
    seconds = 0.0
    for first in range(0, count, BATCH):
        batch = messages[first : first + BATCH]
        verdict = fuzzing.run(batch)
        seconds += verdict.seconds
        if not verdict:
            pytest.fail(_explained(fuzzing, verdict, batch))
    report(f"{count} messages in {seconds:.1f} s, {count / seconds:.0f} a second")


def test_large_messages(fuzzing: Fuzzing) -> None:
    """As large as a broker takes them, in one of their parts."""
    places = {"how": LONG, "args": LONG, "kwargs": {"more": LONG}, "callbacks": LONG, "all": LONG}
    wrong = [*places.items(), ("all", Raw(b"\xff", LONG.length))]
    verdict = fuzzing.run(fuzzing.number([Message(0, ((f"body.{place}", value),)) for place, value in wrong]))
    assert verdict, verdict


@pytest.mark.long
@pytest.mark.parametrize(
    ("protections", "wrong", "seen"),
    [
        (
            [
                ("worker/request.py", "        shape.check(self)\n", ""),
                ("worker/request.py", "elif self._end or not self.task.acks_late:", "elif True:"),
            ],
            ("body.kwargs", None),
            "missing: ",
        ),
        (
            [("worker/consumer.py", "except Exception as error:", "except lost as error:")],
            ("body.all", 5),
            "the worker: ",
        ),
    ],
    ids=["lost", "ended"],
)
@pytest.mark.used_vhost
def test_without_the_gate_the_smallest_message_is_found(
    bundle: Bundle, protections: list[tuple[str, str, str]], wrong: tuple[str, object], seen: str
) -> None:
    """The control: acknowledged by an error of Celery's own, or the end of the worker."""
    fuzzing = Fuzzing(bundle, slots=2, silence=5)
    for protection in protections:
        bundle.switch_off(*protection)
    others = [Message(0, (("header.lang", "php"),))] * 20
    batch = fuzzing.number([*others, Message(0, (wrong, ("header.lang", "php")), end="fail"), *others])

    verdict = fuzzing.run(batch)

    assert seen in str(verdict)
    found = fuzzing.smallest(verdict, batch)
    assert found
    assert found[0].numbered(0) == Message(0, (wrong,))


def _drawn(count: int, seed: str | None) -> list[Message]:
    """So many messages: the same each time, unless a seed is given."""
    drawn: list[Message] = []

    @hypothesis.settings(
        max_examples=count,
        phases=[hypothesis.Phase.generate],
        database=None,
        derandomize=seed is None,
    )
    @hypothesis.given(MESSAGES)
    def draw(message: Message) -> None:
        drawn.append(message)

    (draw if seed is None else hypothesis.seed(int(seed))(draw))()
    return drawn


def _explained(fuzzing: Fuzzing, verdict: Verdict, batch: Sequence[Message]) -> str:
    """What is wrong, with the smallest message that shows it, as Python would make it."""
    if found := fuzzing.smallest(verdict, batch):
        message, alone = found
        return f"{verdict}\n\nThe smallest: {message!r}\n{alone}"
    return f"{verdict}\n\nNone of them fails alone."
