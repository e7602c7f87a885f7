"""A real Redis as the doorbell: what one process sends, a worker process of the right queue takes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.ops.processes import Program, running, wait_until

pytestmark = pytest.mark.slow

QUEUES = {name: f"django_q:{name}:q" for name in ("light", "training")}


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of the test's Redis database, with both queues empty before and after."""
    with Redis.from_url(redis_url) as client:
        client.delete(*QUEUES.values())
        yield client
        client.delete(*QUEUES.values())


def ring(data_dir: Path, redis_url: str, *, queue: str) -> Program:
    """Send `time.sleep(0)` from a process of its own, as the website would, inside a transaction."""
    call = (
        "from django.db import transaction\n"
        "from ops_app.queue import enqueue\n"
        "with transaction.atomic():\n"
        f"    enqueue('time.sleep', 0, queue={queue!r})\n"
        "print('committed')"
    )
    with running("shell", "--no-imports", "-c", call, data_dir=data_dir, REDIS_URL=redis_url) as shell:
        assert shell.wait_end(seconds=30) == 0, shell.log
        return shell


def test_a_worker_takes_from_redis_what_another_process_sent_to_its_queue_and_nothing_else(
    data_dir: Path, redis: Redis, redis_url: str
) -> None:
    ring(data_dir, redis_url, queue="training")
    ring(data_dir, redis_url, queue="light")
    assert {name: redis.llen(key) for name, key in QUEUES.items()} == {"light": 1, "training": 1}
    with running("qworker", "--queue", "training", data_dir=data_dir, REDIS_URL=redis_url) as cluster:
        cluster.wait_log(r"Processed 'time.sleep'")
        assert redis.llen(QUEUES["training"]) == 0
        ring(data_dir, redis_url, queue="training")
        cluster.wait_log(r"Processed 'time.sleep'", count=2)
        cluster.process.terminate()
        assert cluster.wait_end() == 0
        cluster.wait_gone()
        assert cluster.log.count("Processed 'time.sleep'") == 2
    assert redis.llen(QUEUES["light"]) == 1, "the message of the other queue waits for its own cluster"


def test_the_jobs_of_a_start_run_by_way_of_redis(data_dir: Path, redis: Redis, redis_url: str) -> None:
    with running("qworker", data_dir=data_dir, REDIS_URL=redis_url) as cluster:
        cluster.wait_log(r"Processed 'ops_app\.")
        wait_until(lambda: redis.llen(QUEUES["light"]) == 0, what="an empty queue")
        cluster.process.terminate()
        assert cluster.wait_end() == 0
        cluster.wait_gone()


def test_a_redis_that_cannot_be_reached_costs_the_bell_and_not_the_transaction(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shell = ring(data_dir, f"redis://127.0.0.1:{port}/0", queue="light")
    assert "committed" in shell.log
