"""Messages that wait in their slots for a turn."""

from kombu.asynchronous import Hub

from proj.worker.delivery import Turns

#: Seconds that no test waits for.
LATER = 3600


def test_what_waits_in_a_slot_is_dropped_with_its_connection() -> None:
    """The broker delivers it again, and it must not be executed twice. What comes later is executed."""
    hub, turns, executed = Hub(), Turns(), list[str]()
    turns.wait(hub.timer, 0, executed.append, "before")
    turns.drop()
    turns.wait(hub.timer, 0, executed.append, "after")

    hub.fire_timers()

    assert executed == ["after"]


def test_turns_are_as_far_apart_as_the_rate_says() -> None:
    turns = Turns()

    first, second, third = (turns.next("a", 1 / LATER) for _ in range(3))

    assert first == turns.next("b", 1 / LATER) == 0
    assert 0.9 * LATER < second <= LATER < third <= 2 * LATER
    turns.forget()
    assert turns.next("a", 1 / LATER) == 0
