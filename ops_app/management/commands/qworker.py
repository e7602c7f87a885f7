"""Serve a queue with worker processes: our hardened runner instead of django-q2's `qcluster`."""

from __future__ import annotations

import os
import socket
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from ops_app import queue
from ops_app.guards import require_migrated
from ops_app.process import manage_command


class Command(BaseCommand):
    help = (
        "Serve a queue until Ctrl-C. Exit code 70: a worker process died unplanned, so that all were ended; "
        "a supervisor (runall, systemd, Docker) starts it again. Any number may run, on any number of hosts."
    )
    requires_system_checks = ["ops"]  # the others load every page of the site

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--queue",
            choices=queue.queues(),
            default=settings.LIGHT_QUEUE,
            help="light: universe, candles, coverage; training: one training per worker. Default: %(default)s.",
        )
        parser.add_argument("--name", default="", help="Name of its heartbeat; needed for a second one on this host.")

    def handle(self, *_args: Any, **options: Any) -> None:
        chosen = options["queue"]
        require_migrated()
        if os.environ.get("Q_CLUSTER_NAME", settings.LIGHT_QUEUE) != chosen:
            # django-q2 reads the name when Django starts, so this process starts again under the right one.
            arguments = ["qworker", "--queue", chosen, *(["--name", options["name"]] if options["name"] else [])]
            command = manage_command(*arguments)
            os.execve(command[0], command, {**os.environ, "Q_CLUSTER_NAME": chosen})  # noqa: S606 - no shell is wanted
        from ops_app.cluster import Cluster

        name = options["name"] or f"worker {chosen}@{socket.gethostname()}"
        sys.exit(Cluster(queue=chosen, name=name).run())
