"""System checks with stable ids: each setting of the queue and the database that would bring an old bug back.

The numbers behind them are in reference/locks.md and stack.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.checks import Warning as CheckWarning

TAG = "ops"
#: Exact in the float32 that django-q2 counts down; 0.3 never reaches 0 and switches time-outs off.
GUARD_CYCLES = (0.25, 0.5, 1, 1.0)
LOOPBACK = ("127.", "localhost", "[::1]", "unix:")
OTHER_BROKERS = {"broker_class", "django_redis", "disque_nodes", "iron_mq", "mongo", "sqs"}
REDIS_PATIENCE = ("socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval")
#: Options of a PostgreSQL connection, and what happens without each.
POSTGRESQL_PATIENCE = {
    "lock_timeout": "a process waits for a lock for ever",
    "idle_in_transaction_session_timeout": "a process frozen in a transaction blocks the others for ever",
    "connect_timeout": "a process that is cut off waits for minutes for a connection",
    "tcp_user_timeout": "a process that is cut off waits for 15 minutes for an answer",
}


def clusters(q_cluster: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and settings of each cluster, as django-q2 will see them."""
    base = {key: value for key, value in q_cluster.items() if key != "ALT_CLUSTERS"}
    yield str(base.get("name", "default")), base
    for name, changes in q_cluster.get("ALT_CLUSTERS", {}).items():
        yield name, {**base, **changes}


def least_retry(cluster: Mapping[str, Any]) -> float:
    """Return the bound that `retry` must exceed: its clock starts when a message is fetched, not when a task starts."""
    waiting = cluster.get("queue_limit", 1) + cluster.get("bulk", 1) - 1
    return float(cluster.get("timeout") or math.inf) * (2 + math.ceil(waiting / cluster.get("workers", 1)))


def check_cluster(name: str, cluster: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Yield what is wrong with one cluster's settings."""
    if not cluster.get("retry", 60) > least_retry(cluster):
        yield Error(
            f"Q_CLUSTER {name}: retry={cluster.get('retry', 60)} is not above {least_retry(cluster):g} = "
            "timeout * (2 + ceil((queue_limit + bulk - 1) / workers)): a task would be started again while it runs.",
            hint="Raise retry, or lower timeout or queue_limit.",
            id="ops.E001",
        )
    if cluster.get("guard_cycle", 0.5) not in GUARD_CYCLES:
        yield Error(
            f"Q_CLUSTER {name}: guard_cycle={cluster.get('guard_cycle')} switches time-outs off (a float32 never "
            "reaches 0).",
            hint="Use 0.25, 0.5 or 1.",
            id="ops.E002",
        )
    if cluster.get("catch_up", True):
        yield Error(
            f"Q_CLUSTER {name}: catch_up is on: after an hour down, every missed run of a schedule would be made up.",
            hint='Set "catch_up": False.',
            id="ops.E003",
        )
    if cluster.get("max_attempts", 0) != 1 or not cluster.get("ack_failures", False):
        yield Error(
            f"Q_CLUSTER {name}: max_attempts={cluster.get('max_attempts', 0)}, "
            f"ack_failures={cluster.get('ack_failures', False)}: a failing task would be repeated for ever.",
            hint='Set "max_attempts": 1 and "ack_failures": True; our rows count the attempts.',
            id="ops.E004",
        )
    if cluster.get("save_limit", 250) != 0:
        yield Error(
            f"Q_CLUSTER {name}: save_limit={cluster.get('save_limit', 250)} costs 3-16 x throughput.",
            hint='Set "save_limit": 0; the job ops.prune deletes old rows.',
            id="ops.E005",
        )
    if cluster.get("sync", False):
        yield Error(
            f"Q_CLUSTER {name}: sync is on: web pages would run the tasks themselves, also trainings.",
            hint='Remove "sync"; tests capture messages with ops_app.queue.capture.',
            id="ops.E012",
        )


def check_broker(q_cluster: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Yield what is wrong with the broker: our database, so that a message commits with its row, or a patient Redis."""
    others = sorted(OTHER_BROKERS & q_cluster.keys())
    if others or ("redis" in q_cluster) == ("orm" in q_cluster) or q_cluster.get("orm", "default") != "default":
        yield Error(
            f"Q_CLUSTER: the broker is {', '.join(others) or 'unclear'}: only the database, so that messages commit "
            "with their rows, or Redis was tested.",
            hint="Set REDIS_URL for Redis, or leave it empty for the database; do not edit Q_CLUSTER.",
            id="ops.E013",
        )
    elif "redis" in q_cluster:
        missing = [name for name in REDIS_PATIENCE if name not in _redis_options(q_cluster["redis"])]
        if missing:
            yield Error(
                f"Q_CLUSTER: Redis without {', '.join(missing)}: a worker that is cut off waits for messages for ever.",
                hint="Restore redis_address of tradingsite/settings.py.",
                id="ops.E014",
            )


def _redis_options(redis: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(redis, str) and redis.startswith("unix:"):  # nothing can cut off a socket of this machine
        return dict.fromkeys(REDIS_PATIENCE)
    return dict(parse_qsl(urlsplit(redis).query)) if isinstance(redis, str) else redis


@register(TAG)
def check_queues(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:  # noqa: ARG001 - Django's signature
    """Check every cluster, and that both queues have one."""
    messages = [message for name, cluster in clusters(settings.Q_CLUSTER) for message in check_cluster(name, cluster)]
    messages += check_broker(settings.Q_CLUSTER)
    named = dict(clusters(settings.Q_CLUSTER))
    messages += [
        Error(
            f"No cluster serves the queue {queue!r}: its messages would wait for ever.",
            hint=f"Name it in Q_CLUSTER: there are {', '.join(named)}.",
            id="ops.E006",
        )
        for queue in (settings.LIGHT_QUEUE, settings.TRAINING_QUEUE)
        if queue not in named
    ]
    schedulers = [name for name, cluster in named.items() if cluster.get("scheduler", True)]
    if schedulers != [settings.LIGHT_QUEUE]:
        messages.append(
            Error(
                f"Clusters with a scheduler: {', '.join(schedulers) or 'none'}; only {settings.LIGHT_QUEUE} should.",
                hint='Set "scheduler": False for the others.',
                id="ops.E007",
            )
        )
    training = named.get(settings.TRAINING_QUEUE, {})
    if (training.get("timeout") or 0) <= settings.TRAIN_TIMEOUT_MINUTES * 60:
        messages.append(
            Error(
                f"Q_CLUSTER {settings.TRAINING_QUEUE}: timeout={training.get('timeout')} s is not above "
                f"TRAIN_TIMEOUT_MINUTES={settings.TRAIN_TIMEOUT_MINUTES:g}: the queue would end a running training.",
                hint="Raise its timeout.",
                id="ops.E008",
            )
        )
    return messages


@register(TAG)
def check_database(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:  # noqa: ARG001 - Django's signature
    """Check what makes several writing processes safe and fast on each database."""
    config = settings.DATABASES["default"]
    options = config.get("OPTIONS", {})
    messages: list[CheckMessage] = []
    if "sqlite" in config["ENGINE"]:
        if (
            options.get("transaction_mode") != "IMMEDIATE"
            or "journal_mode=wal" not in options.get("init_command", "").lower()
            or options.get("timeout", 5) < 5
        ):
            messages.append(
                Error(
                    "SQLite is not set to WAL, IMMEDIATE and a timeout of at least 5 s: writes of four processes "
                    "failed with `database is locked` in 88 of 237 cases.",
                    hint="Restore SQLITE_OPTIONS of tradingsite/settings.py.",
                    id="ops.E009",
                )
            )
    else:
        messages += _check_postgresql(options)
    if config.get("ATOMIC_REQUESTS"):
        messages.append(
            Error(
                "ATOMIC_REQUESTS holds a write transaction during each request.",
                hint="Remove it: services open the transactions that they need.",
                id="ops.E011",
            )
        )
    return messages


def _check_postgresql(options: Mapping[str, Any]) -> Iterator[CheckMessage]:
    if options.get("pool"):
        yield Error(
            "PostgreSQL's connection pool breaks django-q2 (11 of 100 tasks ran).",
            hint='Remove "pool" from the OPTIONS of the database.',
            id="ops.E010",
        )
    missing = [name for name in POSTGRESQL_PATIENCE if name not in options and name not in options.get("options", "")]
    if missing:
        yield Error(
            "PostgreSQL: " + "; ".join(f"without {name} {POSTGRESQL_PATIENCE[name]}" for name in missing) + ".",
            hint="Restore the OPTIONS of tradingsite/settings.py.",
            id="ops.E015",
        )


@register(TAG)
def check_site(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:  # noqa: ARG001 - Django's signature
    """Check that what is meant for one's own machine is not shown to others."""
    if settings.DEBUG and not str(settings.WEB_BIND).startswith(LOOPBACK):
        return [
            CheckWarning(
                f"DEBUG is on and WEB_BIND={settings.WEB_BIND} can be reached by others: error pages show secrets.",
                hint="Unset DEBUG, or bind to 127.0.0.1.",
                id="ops.W001",
            )
        ]
    return []
