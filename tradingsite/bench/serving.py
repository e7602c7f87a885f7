"""What a request costs the web server's process, at the number of symbols that it shows."""

from __future__ import annotations

import json
from collections.abc import Iterator

from django.contrib.auth.models import User
from django.core.serializers.json import DjangoJSONEncoder
from django.test import Client, override_settings
from django.urls import reverse

from coverage_app.models import Symbol
from ops_app import clock
from tradingsite.bench import worlds
from tradingsite.bench.measure import QUERIES, SECONDS, Figure, Scale, expect, many_times, queries

SIZES = (50, 500)
BYTES_PER_CANDLE = 0
GOAL = 0.1
TIMES = 5


def run(scale: Scale) -> Iterator[Figure]:
    with clock.simulated(worlds.NOW), override_settings(ALLOWED_HOSTS=["testserver"], SECURE_SSL_REDIRECT=False):
        worlds.fill_symbols(scale)
        person, _ = User.objects.get_or_create(username="bench", is_staff=True, is_superuser=True)
        client = Client()
        client.force_login(person, backend="django.contrib.auth.backends.ModelBackend")
        paths = {
            "api_symbols": f"{reverse('api:symbol-list')}?page_size={scale.symbols}",
            "dashboard": reverse("dashboard"),
        }
        for name, path in paths.items():

            def request(path: str = path) -> None:
                answer = client.get(path)
                expect(answer.status_code == 200, f"{path} answered {answer.status_code}")

            yield Figure(
                name=f"serving.{name}", symbols=scale.symbols, unit=SECONDS, goal=GOAL,
                value=many_times(request, TIMES), limit=many_times(_least, TIMES),
                versus="the rows of the symbols as dicts, and as JSON",
            )  # fmt: skip
            yield Figure(
                name=f"serving.{name}.queries", symbols=scale.symbols, unit=QUERIES, value=queries(request), limit=1,
                versus="one query",
            )  # fmt: skip


def _least() -> str:
    return json.dumps(list(Symbol.objects.values()), cls=DjangoJSONEncoder)
