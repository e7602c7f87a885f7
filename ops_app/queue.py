"""The only place that talks to the queue. The queue is a doorbell: it may lose, double, delay or reorder any message.

So a message is a dotted name and a few ints or strings (Q1), names its queue (Q2), and its task first claims a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction

Argument = int | str


@dataclass(frozen=True)
class Message:
    """A call that was asked for: `dotted(*args)`."""

    dotted: str
    args: tuple[Argument, ...]
    queue: str
    group: str


_captured: list[Message] | None = None


@contextmanager
def capture() -> Iterator[list[Message]]:
    """Collect messages instead of sending them: for tests, and for the soak that runs the tasks itself."""
    global _captured
    before = _captured
    messages: list[Message] = []
    _captured = messages
    try:
        yield messages
    finally:
        _captured = before


def queues() -> tuple[str, ...]:
    """Return the names of the queues that a cluster may serve."""
    return (settings.LIGHT_QUEUE, settings.TRAINING_QUEUE)


def enqueue(dotted: str, *args: Argument, queue: str | None = None, group: str = "") -> None:
    """Ask a worker of `queue` (default: the light one) to call `dotted(*args)`.

    Inside `atomic()` the message appears with the commit: the ORM broker's row is part of the transaction, Redis is
    rung on commit. Raises TypeError or ValueError for what must not go into a message.
    """
    queue = queue or settings.LIGHT_QUEUE
    if queue not in queues():
        raise ValueError(f"queue is {queue!r}: it must be one of {', '.join(queues())}, else no worker ever takes it")
    if not isinstance(dotted, str) or "." not in dotted:
        raise TypeError(f"task is {dotted!r}: give its dotted name, like coverage_app.tasks.ingest_task")
    for value in args:
        if type(value) not in (int, str):
            raise TypeError(f"{dotted}: argument {value!r} is a {type(value).__name__}; only int and str may be sent")
    message = Message(dotted=dotted, args=args, queue=queue, group=group)
    if _captured is not None:
        _captured.append(message)
    elif settings.Q_CLUSTER.get("orm"):
        _send(message)
    else:
        # A broker that cannot be reached costs a doorbell, not the row: a sweeper rings again (T10).
        transaction.on_commit(lambda: _send(message), robust=True)  # Django names it: no partial


def waiting(queue: str) -> int:
    """Return how many messages of `queue` no worker has fetched yet: one cheap read of the broker."""
    if _captured is not None:
        return 0  # whoever captures takes them at once
    from django_q.brokers import get_broker

    return int(get_broker(list_key=queue).queue_size())


def _send(message: Message) -> None:
    from django_q.tasks import async_task

    # save=False: a success leaves no row (ours tells more); a failure always does.
    async_task(
        message.dotted,
        *message.args,
        q_options={"cluster": message.queue, "group": message.group or message.dotted, "save": False},
    )
