"""Messages of programs that know nothing of Celery become tasks, each once while nothing fails."""

import json
import signal
from collections import Counter

import amqp
import pytest

from proj import queues
from proj.ingest import ids
from tests.lib import dead, foreign
from tests.lib.bundle import Bundle
from tests.lib.publisher import user
from tests.lib.refusal import refuses
from tests.lib.waiting import eventually

#: What a route file of a test says.
ROUTES = """
[[route]]
queue = "list"
decoder = "json-args"
task = "proj.tasks.add"
"""

#: Modules of a user, and routes to them. Celery writes models only for a task that is `pydantic`.
SHOP = """
from pydantic import BaseModel
from proj.celery import app

class Order(BaseModel):
    number: int

@app.task(name="shop.buy", pydantic=True)
def buy(order: Order) -> None:
    ...

@app.task(name="shop.sell")
def sell(order: Order) -> None:
    ...
"""
DECODERS = """
from shop import Order

def order(body):
    return (Order(number=int(body)),), {}
"""
ORDERS = """
[[route]]
queue = "buy"
decoder = "decoders:order"
task = "shop.buy"

[[route]]
queue = "sell"
decoder = "decoders:order"
task = "shop.sell"
"""


@pytest.mark.used_vhost
def test_a_thousand_messages_become_a_thousand_tasks(bundle: Bundle) -> None:
    """Texts and sums, published before ingest runs and while it does; there are two of them."""
    texts = [f"message {number}" for number in range(500)]
    sums = [{"Number1": number, "Number2": 0.5} for number in range(500)]
    foreign.publish(bundle, texts[:250], content_type="text/plain")
    one, other = foreign.start(bundle).consumes(), foreign.start(bundle, "other.log").consumes()
    foreign.publish(bundle, texts[250:])
    foreign.publish(bundle, map(json.dumps, sums), "add", content_type="text/plain", delivery_mode=2)
    foreign.settle(bundle, one, other, queues=("task_queue", "add"))

    made = foreign.tasks(bundle)
    assert len({task_id for task_id, _ in made}) == 1000
    arguments = Counter(json.dumps(argument) for _, argument in made)
    expected = [*texts, *({"x": each["Number1"], "y": each["Number2"]} for each in sums)]
    assert arguments == Counter(map(json.dumps, expected))
    published = [each for ingest in (one, other) for each in ingest.rows()]
    assert sorted(task_id for _, task_id in published) == sorted(task_id for task_id, _ in made)


@pytest.mark.used_vhost
def test_a_worker_executes_what_a_foreign_program_has_published(bundle: Bundle) -> None:
    """From end to end. Ingest ends at once when it is told to, and says nothing but its log."""
    ingest = foreign.start(bundle).consumes()
    worker = bundle.worker().ready()
    foreign.publish(bundle, ["Hello World!"])
    foreign.publish(bundle, ['{"Number1": 221, "Number2": 345}'], "add")

    worker.says("Received 'Hello World!'")
    worker.says("Result of 221 + 345 is 566")
    ingest.process.send_signal(signal.SIGINT)
    assert ingest.ends() == 130


@pytest.mark.used_vhost
def test_messages_say_what_they_are(bundle: Bundle) -> None:
    """A task has an id that is derived if it can be, a mark then, the priority, and where to reply to."""
    ingest = foreign.start(bundle).consumes()
    foreign.publish(
        bundle,
        ["a"],
        message_id="m-1",
        priority=200,
        expiration="600000",
        reply_to="answers",
        correlation_id="c",
    )
    foreign.publish(bundle, ["b"], content_type="text/plain", headers={"CC": ["nowhere"], "own": 1})
    foreign.settle(bundle, ingest)

    with_id, without = dead.take(bundle, "proj.tasks")
    headers = with_id.properties["application_headers"]
    derived, _ = ids.task_id("m-1", "task_queue", b"a")
    assert headers["id"] == with_id.properties["correlation_id"] == derived
    assert headers[queues.REPEAT_HEADER] is True
    assert (headers[queues.REPLY_HEADER], headers[queues.REPLY_ID_HEADER]) == ("answers", "c")
    assert (with_id.properties["priority"], with_id.properties["delivery_mode"]) == (9, 2)
    assert "expiration" not in with_id.properties
    others = without.properties["application_headers"]
    assert not {queues.REPEAT_HEADER, queues.REPLY_HEADER, "CC", "own"} & others.keys()
    assert bundle.depth("proj.dead") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"durable": False, "auto_delete": False},
        {"durable": True, "auto_delete": False, "arguments": {"x-queue-type": "quorum"}},
        {"durable": True, "auto_delete": False, "arguments": {"x-max-priority": 5, "x-message-ttl": 600_000}},
    ],
    ids=["transient", "quorum", "priorities"],
)
@pytest.mark.used_vhost
def test_a_queue_that_is_there_is_consumed_as_it_is(
    bundle: Bundle, arguments: dict[str, object], request: pytest.FixtureRequest
) -> None:
    """Whatever its arguments, none of which is changed. RabbitMQ 4.3 has no transient queues."""
    name = f"foreign-{request.node.callspec.id}"
    routes = bundle.folder / "routes.toml"
    routes.write_text(ROUTES.replace('"list"', f'"{name}"'))
    with bundle.channel() as channel:
        try:
            channel.queue_declare(name, **arguments)
        except amqp.InternalError as error:
            if "transient_nonexcl_queues" in str(error):
                pytest.skip("this RabbitMQ has no transient queues")
            raise
        dead.send(channel, [amqp.Message(b"[1, 2]")], name)

        ingest = foreign.start(bundle, env={"PROJ_INGEST_ROUTES": str(routes)}).consumes(name)
        foreign.settle(bundle, ingest, queues=(name,))
        channel.queue_declare(name, **arguments)  # is refused if it has become another one

    assert f"declared queue {name}" not in ingest.text()
    [(_, argument)] = foreign.tasks(bundle)
    assert argument == 1


@pytest.mark.used_vhost
def test_a_queue_that_cannot_be_consumed_does_not_hold_up_the_others(bundle: Bundle) -> None:
    """It is one line, and consumed as soon as it can be."""
    with bundle.channel() as channel:
        channel.queue_declare("task_queue", exclusive=True)
        ingest = foreign.start(bundle)
        ingest.says("queue task_queue cannot be consumed, and is tried again: RESOURCE_LOCKED")
        ingest.consumes("add")
        foreign.publish(bundle, ['{"Number1": 1, "Number2": 2}'], "add")
        ingest.says("published")
    ingest.consumes("task_queue")
    foreign.publish(bundle, ["a"])
    ingest.says("published", 2)
    assert ingest.text().count("cannot be consumed") == 1


def test_a_queue_that_is_deleted_is_declared_again(bundle: Bundle) -> None:
    ingest = foreign.start(bundle).consumes()
    with bundle.channel() as channel:
        channel.queue_delete("task_queue")
    ingest.says("queue task_queue cannot be consumed, and is tried again: the broker has cancelled")
    ingest.says("consuming queue task_queue", 2)
    foreign.publish(bundle, ["a"])
    ingest.says("published")


@pytest.mark.used_vhost
def test_the_rights_that_the_containers_give_are_enough(bundle: Bundle) -> None:
    """To configure and read the two queues, and to write to two of our exchanges; nothing else."""
    bundle.declare()
    foreign_queues = "^(task_queue|add)$"
    with user(bundle, configure=foreign_queues, read=foreign_queues, write=r"^proj\.(direct|dead)$"):
        ingest = foreign.start(bundle).consumes()
        foreign.publish(bundle, ["a", b"\xff"])
        ingest.says("published")
        ingest.says("became a dead letter")
        assert ingest.terminate() == 0
    assert (bundle.depth("proj.tasks"), bundle.depth("proj.dead")) == (1, 1)


@pytest.mark.used_vhost
def test_a_user_who_lacks_a_right_is_told_which(bundle: Bundle) -> None:
    """To read a queue: that queue is tried again. To publish: ingest ends, and acknowledges nothing."""
    bundle.declare()
    with user(bundle, configure="task_queue|add", read="add", write="^proj.dead$"):
        ingest = foreign.start(bundle)
        ingest.says("queue task_queue cannot be consumed, and is tried again: ACCESS_REFUSED")
        ingest.consumes("add")
        foreign.publish(bundle, ['{"Number1": 1, "Number2": 2}'], "add")
        assert ingest.ends() == 69
        ingest.says("Error: ")
        assert "'proj.direct'" in ingest.text().splitlines()[-1]
    assert bundle.kept("add") == 1


@pytest.mark.used_vhost
def test_a_decoder_of_ones_own_in_the_working_folder_returns_models(bundle: Bundle) -> None:
    """What no message can carry is a dead letter, and stops no queue."""
    (bundle.folder / "shop.py").write_text(SHOP)
    (bundle.folder / "decoders.py").write_text(DECODERS)
    (bundle.folder / "routes.toml").write_text(ORDERS)
    bundle.env |= {"PROJ_TASKS": "shop", "PROJ_INGEST_ROUTES": "routes.toml"}
    assert "as decoders:order decodes it" in bundle.proj("schema").stdout

    ingest = foreign.start(bundle).consumes("buy", "sell")
    foreign.publish(bundle, ["1"], "sell")
    ingest.says("became a dead letter: invalid")
    foreign.publish(bundle, ["2", "3"], "buy")
    foreign.settle(bundle, ingest, queues=("buy", "sell"))
    assert [argument for _, argument in foreign.tasks(bundle)] == [{"number": 2}, {"number": 3}]
    [row] = dead.rows(bundle)
    assert row["reason"].startswith("invalid: ")
    assert "shop.sell: JSON cannot carry the arguments" in row["exception"]


@pytest.mark.used_vhost
def test_wrong_routes_end_it_at_its_start(bundle: Bundle) -> None:
    """A route to where it comes from, and a wrong password, before any message is touched."""
    routes = bundle.folder / "routes.toml"
    routes.write_text(ROUTES.replace('"list"', '"proj.tasks"'))
    file = f"PROJ_INGEST_ROUTES ({routes})"
    refuses(
        bundle,
        2,
        file,
        "queue 'proj.tasks' is no foreign queue",
        command=("ingest",),
        PROJ_INGEST_ROUTES=str(routes),
    )
    url = bundle.url.replace("guest:guest", "guest:s3cret")
    ingest = foreign.start(bundle, env={"CELERY_BROKER_URL": url})
    assert ingest.ends() == 69
    ingest.says("refused user 'guest' and its password")


@pytest.mark.used_vhost
def test_supervisors_see_whether_it_consumes(bundle: Bundle) -> None:
    """Apart from workers, and no longer once it has ended."""
    assert bundle.proj("health", "--ready", "--ingest").returncode == 69
    ingest = foreign.start(bundle).consumes()

    def verdict() -> str:
        return bundle.proj("health", "--ready", "--ingest").stdout

    eventually("it is ready", lambda: verdict().startswith("ready: ingest ingest-"), seen=verdict)
    assert bundle.proj("health", "--live").returncode == 69
    assert ingest.terminate() == 0
    assert bundle.proj("health", "--live", "--ingest").stdout.startswith("not live: no ingest runs")
