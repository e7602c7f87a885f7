"""A broker that loses, doubles, delays and reorders its messages, on purpose: the queue is only a doorbell."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from django.conf import settings

from ops_app import clock, queue

MOST_DOUBLED = 20
"""Doubling all of them would grow without a bound while every worker trains."""
ACCIDENTS = ("emptied", "doubled", "delayed", "reordered", "delivered again")


class Messages(Protocol):
    """What chaos does to the waiting messages of one queue; each method returns how many it touched."""

    def empty(self, share: float) -> int: ...
    def double(self) -> int: ...
    def delay(self, seconds: float) -> int: ...
    def reorder(self) -> int: ...
    def deliver_again(self) -> int: ...


@dataclass(slots=True)
class BrokerChaos:
    """`step()` plays one accident on a queue drawn at random. `counts` says how many messages each kind touched."""

    seed: int
    longest_delay: float = 10.0
    queues: Sequence[str] = field(default_factory=queue.queues)
    counts: Counter[str] = field(default_factory=Counter)
    _random: Any = field(init=False)
    _messages: dict[str, Messages] = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        kind = _OrmMessages if settings.Q_CLUSTER.get("orm") else _RedisMessages
        self._messages = {name: kind(name, self._random) for name in self.queues}

    def step(self) -> None:
        """Lose all or some messages, double them, hold them back, shuffle them, or deliver fetched ones again."""
        messages = self._messages[self._random.choice(list(self.queues))]
        accident = self._random.choice(ACCIDENTS)
        if accident == "emptied":
            touched = messages.empty(self._random.choice((0.5, 1.0)))
        elif accident == "doubled":
            touched = messages.double()
        elif accident == "delayed":
            touched = messages.delay(self._random.uniform(0.1, 1.0) * self.longest_delay)
        elif accident == "reordered":
            touched = messages.reorder()
        else:
            touched = messages.deliver_again()
        self.counts[accident] += touched


def discard_messages() -> None:
    """Empty every queue: what a test sent must not wait in a broker that outlives it."""
    from django_q.brokers import get_broker

    for name in queue.queues():
        get_broker(list_key=name).delete_queue()


class _OrmMessages:
    """Rows of django-q2's table. A row whose lock is in the future is held back, or was fetched and not yet done."""

    def __init__(self, name: str, chance: Any) -> None:
        from django_q.brokers import get_broker
        from django_q.models import OrmQ

        self._name, self._random, self._model = name, chance, OrmQ
        self._broker = get_broker(list_key=name)
        self._seen: list[str] = []

    def _now(self) -> datetime:
        """Return the broker's own time, which is not ours while ours is simulated."""
        from django_q.conf import Conf

        until: datetime = self._broker.timeout(None)
        return until - timedelta(seconds=Conf.RETRY)

    def _rows(self) -> Any:
        return self._model.objects.filter(key=self._name)

    def _waiting(self) -> list[Any]:
        rows = list(self._rows().filter(lock__lte=self._now()).order_by("pk"))
        self._seen = (self._seen + [row.payload for row in rows])[-100:]
        return rows

    def _insert(self, payloads: Sequence[str]) -> int:
        now = self._now()
        self._model.objects.bulk_create(
            [self._model(key=self._name, payload=payload, lock=now) for payload in payloads]
        )
        return len(payloads)

    def empty(self, share: float) -> int:
        chosen = [row.pk for row in self._waiting() if self._random.random() < share]
        return int(self._rows().filter(pk__in=chosen).delete()[0])

    def double(self) -> int:
        return self._insert([row.payload for row in self._waiting()][:MOST_DOUBLED])

    def delay(self, seconds: float) -> int:
        waiting = [row.pk for row in self._waiting()]
        until = self._now() + timedelta(seconds=seconds)
        return int(self._rows().filter(pk__in=waiting, lock__lte=self._now()).update(lock=until))

    def reorder(self) -> int:
        """Insert the rows again in another order: the broker gives them out by their keys."""
        rows = self._waiting()
        self._random.shuffle(rows)
        gone = self._rows().filter(pk__in=[row.pk for row in rows]).delete()[0]
        return min(self._insert([row.payload for row in rows]), gone)

    def deliver_again(self) -> int:
        """Unlock what was fetched, as when `retry` is over, and send again what was done long ago."""
        self._waiting()
        old = self._insert(self._random.sample(self._seen, min(3, len(self._seen))))
        return old + int(self._rows().filter(lock__gt=self._now()).update(lock=self._now()))


class _RedisMessages:
    """A list of Redis; what is held back is kept here until its time has come."""

    def __init__(self, name: str, chance: Any) -> None:
        from django_q.brokers import get_broker

        self._random = chance
        broker = get_broker(list_key=name)
        self._redis, self._key = broker.connection, broker.list_key
        self._held: list[tuple[float, bytes]] = []
        self._seen: list[bytes] = []

    def _waiting(self) -> list[bytes]:
        """Put back what was held long enough; return what waits."""
        now = clock.monotonic()
        for _, payload in [held for held in self._held if held[0] <= now]:
            self._redis.rpush(self._key, payload)
        self._held = [held for held in self._held if held[0] > now]
        waiting: list[bytes] = self._redis.lrange(self._key, 0, -1)
        self._seen = (self._seen + waiting)[-100:]
        return waiting

    def _take(self, payloads: Sequence[bytes]) -> list[bytes]:
        """Remove one of each; return those that no worker fetched at the same moment."""
        return [payload for payload in payloads if self._redis.lrem(self._key, 1, payload)]

    def empty(self, share: float) -> int:
        return len(self._take([payload for payload in self._waiting() if self._random.random() < share]))

    def double(self) -> int:
        doubled = self._waiting()[:MOST_DOUBLED]
        return int(self._redis.rpush(self._key, *doubled) and len(doubled)) if doubled else 0

    def delay(self, seconds: float) -> int:
        taken = self._take(self._waiting())
        self._held += [(clock.monotonic() + seconds, payload) for payload in taken]
        return len(taken)

    def reorder(self) -> int:
        taken = self._take(self._waiting())
        self._random.shuffle(taken)
        if taken:
            self._redis.rpush(self._key, *taken)
        return len(taken)

    def deliver_again(self) -> int:
        self._waiting()
        again = self._random.sample(self._seen, min(3, len(self._seen)))
        if again:
            self._redis.rpush(self._key, *again)
        return len(again)
