"""I22: every page and every endpoint needs a log-in and the right role, except /healthz. Every path is walked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RoutePattern

from tests.site.conftest import PASSWORD, World
from trading_app.models import Bot
from training_app.models import Activation, ActiveModel

SAMPLES = {"name": "main", "app_label": "coverage_app", "url": "nothing-here"}  # every other part of a path is an id: 1
#: Paths that answer without a log-in: the health check, and what is needed to log in.
OPEN = {"/healthz"}
TO_LOG_IN = {"/admin/login/", "/api/v1/token/"}
#: A person's own session, password and token: these are not a matter of roles.
OWN = {"/admin/logout/", "/admin/password_change/", "/admin/password_change/done/", "/api/v1/token/"}
MONEY_PATHS = {
    "/bots/main/state", "/bots/main/kill", "/bots/main/reset", "/roll-back", "/api/v1/bots/main/state/",
    "/api/v1/bots/main/kill/", "/api/v1/bots/main/reset-kill-switch/", "/api/v1/artifacts/1/activate/",
    "/api/v1/active-models/1/rollback/",
}  # fmt: skip
STEERING_PATHS = MONEY_PATHS | {
    "/train", "/symbols/1/unblock", "/symbols/1/block", "/symbols/1/evaluate", "/api/v1/symbols/1/unblock/",
    "/api/v1/symbols/1/block/", "/api/v1/symbols/1/evaluate/", "/api/v1/blocks/1/lift/", "/api/v1/runs/start/",
    "/api/v1/runs/1/cancel/",
}  # fmt: skip


def written_out(pattern: Any) -> str:
    if isinstance(pattern, RoutePattern):
        return re.sub(r"<(?:\w+:)?(\w+)>", lambda found: SAMPLES.get(found[1], "1"), str(pattern))
    text = str(pattern).removeprefix("^").removesuffix("$").removesuffix(r"\Z")
    text = re.sub(r"\((?:\?P<(\w+)>)?[^()]*\)", lambda found: SAMPLES.get(found[1] or "", "1"), text)
    return text.replace("\\", "")


def every_path(resolver: URLResolver | None = None, prefix: str = "/") -> Iterator[str]:
    for pattern in (resolver or get_resolver()).url_patterns:
        path = prefix + written_out(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from every_path(pattern, path)
        elif isinstance(pattern, URLPattern):
            yield path


def paths() -> list[str]:
    found = sorted(set(every_path()))
    assert len(found) > 100, "the walk lost its way"
    assert all(not set("<>()?^$") & set(path) for path in found), found
    assert STEERING_PATHS - set(found) == set()
    return found


def refused(answer: HttpResponse) -> bool:
    """Return whether the answer shows nothing: not allowed, or sent to the log-in page."""
    to_log_in = answer.status_code == 302 and answer["Location"].startswith("/admin/login/")
    return to_log_in or answer.status_code in {401, 403}


def everything_stored() -> dict[str, list[dict[str, Any]]]:
    """Return every row of our apps, whatever could have been changed."""
    from django.apps import apps

    models = [model for name in ("ops_app", "coverage_app", "training_app", "trading_app")
              for model in apps.get_app_config(name).get_models()]  # fmt: skip
    return {model._meta.label: list(model._default_manager.order_by("pk").values()) for model in models}


def money() -> tuple[Any, ...]:
    return (list(Bot.objects.values()), list(ActiveModel.objects.values()), list(Activation.objects.values()))


def post_everything(client: Client) -> dict[str, int]:
    """Post to every path, and try every action of the admin on row 1; returns the status of each path."""
    body = {"state": "stop", "why": "because", "slot": "multi_symbol:simulated:1h"}
    skip = TO_LOG_IN | OWN
    statuses = {path: client.post(path, body).status_code for path in paths() if path not in skip}
    for model, page in admin.site._registry.items():
        path = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        for _, name, _ in page._get_base_actions():
            client.post(path, {"action": name, ACTION_CHECKBOX_NAME: "1", "why": "because", "post": "yes"})
    return statuses


def test_i22_every_path_but_the_health_check_needs_a_log_in(world: World, client: Client) -> None:
    assert client.get("/healthz").status_code == 200
    before = everything_stored()
    let_in = []
    for path in paths():
        if path in OPEN | TO_LOG_IN | OWN:
            continue
        answers = [client.get(path), client.post(path, {"state": "stop", "why": "because"})]
        wrong_method = [answer for answer in answers if answer.status_code == 405]
        if len(wrong_method) == 2 or not all(refused(answer) or answer in wrong_method for answer in answers):
            let_in.append((path, [answer.status_code for answer in answers]))
    assert let_in == []
    assert everything_stored() == before


def test_i22_without_a_role_nothing_is_shown(world: World, browse: Callable[[str], Client]) -> None:
    client = browse("nobody")
    shown = {
        path: client.get(path).status_code
        for path in paths()
        if path not in OPEN | TO_LOG_IN | OWN | STEERING_PATHS and not refused(client.get(path))
    }
    assert shown == {}
    before = everything_stored()
    assert {path: client.post(path).status_code for path in STEERING_PATHS} == dict.fromkeys(STEERING_PATHS, 403)
    assert everything_stored() == before


def test_i22_without_a_role_the_log_in_is_refused_with_the_next_step(client: Client, people: dict[str, User]) -> None:
    answer = client.post("/admin/login/", {"username": "nobody", "password": PASSWORD})
    assert "ask an admin" in answer.content.decode()
    assert "_auth_user_id" not in client.session


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_every_role_sees_every_page_of_the_site(world: World, browse: Callable[[str], Client], role: str) -> None:
    client = browse(role)
    ours = [path for path in paths() if not path.startswith("/admin/") and path not in STEERING_PATHS | TO_LOG_IN]
    answers = {path: client.get(path).status_code for path in ours}
    answers.pop("/readyz")  # 503 here: no process has started
    assert {path: status for path, status in answers.items() if status != 200} == {}


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_every_role_reads_the_tables_of_the_bot_in_the_admin(
    world: World, browse: Callable[[str], Client], role: str
) -> None:
    client = browse(role)
    for model in admin.site._registry:
        if model._meta.app_label not in {"ops_app", "coverage_app", "training_app", "trading_app"}:
            continue
        path = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        assert client.get(path).status_code == 200, path
        if model._default_manager.filter(pk=1).exists():
            assert client.get(f"{path}1/change/").status_code == 200, path


def test_i22_a_viewer_changes_nothing_by_any_path(world: World, browse: Callable[[str], Client]) -> None:
    before = everything_stored()
    statuses = post_everything(browse("viewer"))
    assert {path: statuses[path] for path in STEERING_PATHS if statuses[path] != 403} == {}
    assert everything_stored() == before


def test_i22_an_operator_steers_the_work_and_never_the_money(world: World, browse: Callable[[str], Client]) -> None:
    before = money()
    statuses = post_everything(browse("operator"))
    assert {path: statuses[path] for path in MONEY_PATHS if statuses[path] != 403} == {}
    assert money() == before
    world.block.refresh_from_db()
    assert world.block.closed_at is not None, "the operator could not even unblock"


def test_i22_an_admin_steers_the_money(world: World, browse: Callable[[str], Client]) -> None:
    client = browse("admin")
    client.post("/bots/main/state", {"state": "pause"})
    world.bot.refresh_from_db()
    assert world.bot.desired_state == "pause"


@pytest.mark.parametrize("path", ["/readyz", "/metrics"])
def test_machines_read_health_and_metrics_with_a_token(
    world: World, call: Callable[[str], Client], client: Client, path: str
) -> None:
    assert client.get(path).status_code == 401
    assert client.get(path, HTTP_AUTHORIZATION="Token wrong").status_code == 401
    assert call("nobody").get(path).status_code == 401
    assert call("viewer").get(path).status_code in {200, 503}
