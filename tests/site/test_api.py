"""The REST API: every list and row, filters, pages, errors in one form, and actions that really call their service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from rest_framework.authtoken.models import Token
from rest_framework.test import APIClient

from coverage_app.models import Block
from ops_app.models import Event
from tests import factories as make
from tests.conventions import walker
from tests.site.conftest import PASSWORD, World
from trading_app.models import Bot
from training_app import registry
from training_app.models import Activation, TrainingRun

LISTS = (
    "symbols", "blocks", "universe-refreshes", "runs", "artifacts", "active-models", "activations", "bots", "decisions",
    "orders", "fills", "positions", "equity", "risk-events", "events", "alerts",
    "watches",
)  # fmt: skip
Call = Callable[[str], APIClient]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_pages_and_shows_its_rows(world: World, call: Call, name: str) -> None:
    body = call("viewer").get(f"/api/v1/{name}/?page_size=1").json()
    assert set(body) == {"count", "next", "previous", "results"}
    expected = 0 if name in {"risk-events", "alerts"} else 1
    assert len(body["results"]) == expected


def test_a_symbol_has_its_state_and_the_reason_for_it(world: World, call: Call) -> None:
    found = call("viewer").get("/api/v1/symbols/1/").json()
    assert found["code"] == "AAA/USDT:USDT"
    assert found["reason"] == "TRAINING_FAILED"
    assert found["evidence"] == world.block.evidence
    assert found["recheck_at"] is not None


def test_the_status_shows_the_whole_and_says_that_the_market_is_simulated(world: World, call: Call) -> None:
    found = call("viewer").get("/api/v1/status/").json()
    assert found["simulated"] is True
    assert sum(found["symbols"].values()) == 1
    assert found["blocks"] == {"TRAINING_FAILED": 1}
    assert [run["id"] for run in found["open_runs"]] == [1]
    assert [bot["name"] for bot in found["bots"]] == ["main"]


@pytest.mark.parametrize(
    "path, ids",
    [
        ("symbols/?state=TRADABLE", []),
        ("symbols/?reason=TRAINING_FAILED", [1]),
        ("symbols/?reason=MANUAL", []),
        ("blocks/?closed_at__isnull=true", [1]),
        ("blocks/?symbol__code=BBB", []),
        ("runs/?state__in=queued,running", [1]),
        ("runs/?state=succeeded", [2]),
        ("decisions/?outcome=ENTER", []),
        ("positions/?closed_at__isnull=true", [1]),
        ("orders/?client_order_id=nothing", []),
        ("watches/?verdict__in=steady,drifted", [1]),
        ("watches/?asks=true", []),
    ],
)
def test_lists_are_filtered(world: World, call: Call, path: str, ids: list[int]) -> None:
    assert [row["id"] for row in call("viewer").get(f"/api/v1/{path}").json()["results"]] == ids


def test_a_page_of_symbols_costs_the_same_for_any_number(world: World, call: Call) -> None:
    client = call("viewer")

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert client.get("/api/v1/symbols/?page_size=1000").status_code == 200
        return len(captured)

    make.SymbolFactory.create_batch(9)
    few = queries()
    make.SymbolFactory.create_batch(190)
    assert queries() == few


def test_a_watch_shows_drift_and_promise_of_an_active_model(world: World, call: Call) -> None:
    client = call("viewer")
    (row,) = client.get("/api/v1/watches/newest/").json()
    assert (row["scope_key"], row["artifact"], row["verdict"]) == (world.active.slot, 1, "steady")
    assert (row["psi_max"], row["promised_precision"], row["trades"], row["wins"]) == (0.75, 0.6, 25, 15)
    assert "features" not in row
    features = client.get("/api/v1/watches/1/").json()["features"]
    assert [(each["feature"], each["bound"], each["drifted"]) for each in features] == [
        ("atr_pct", 0.25, True),
        ("beta_168", None, False),
    ]
    problem(client.get("/api/v1/watches/2/"), 404)
    problem(call("admin").delete("/api/v1/watches/1/"), 405)
    world.active.delete()
    assert client.get("/api/v1/watches/newest/").json() == []


# --- errors, all in the form of RFC 9457 ---


def problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


def test_wrong_values_are_named(world: World, call: Call) -> None:
    body = problem(call("admin").post("/api/v1/bots/main/state/", {"state": "sleep"}), 400)
    assert "sleep" in body["errors"]["state"][0]
    assert "limit" not in body["errors"]
    assert problem(call("viewer").get("/api/v1/symbols/?state=ASLEEP"), 400)["errors"]["state"]
    assert problem(call("operator").post("/api/v1/symbols/1/block/", {}), 400)["errors"]["why"]


def test_without_a_token_nothing_is_shown(world: World) -> None:
    problem(APIClient().get("/api/v1/status/"), 401)


def test_a_role_that_is_too_low_is_told_so(world: World, call: Call) -> None:
    assert "role" in problem(call("viewer").post("/api/v1/symbols/1/unblock/"), 403)["detail"]


def test_what_is_not_there_is_404(world: World, call: Call) -> None:
    problem(call("viewer").get("/api/v1/symbols/99/"), 404)
    problem(call("admin").post("/api/v1/bots/other/kill/", {"why": "test"}), 404)
    assert "/api/v1/symbol/" in problem(call("viewer").get("/api/v1/symbol/"), 404)["detail"]
    assert problem(call("viewer").get("/api/v2/"), 404)


def test_a_refusal_of_the_service_is_409_with_its_reason(world: World, call: Call) -> None:
    client = call("operator")
    assert client.post("/api/v1/symbols/1/unblock/").status_code == 200
    assert "nothing open" in problem(client.post("/api/v1/symbols/1/unblock/"), 409)["detail"]


# --- actions ---


def test_an_operator_unblocks_blocks_and_evaluates(world: World, call: Call, people: dict[str, User]) -> None:
    client = call("operator")
    assert "lifted" in client.post("/api/v1/blocks/1/lift/").json()["message"]
    assert client.post("/api/v1/symbols/1/block/", {"why": "looks odd"}).status_code == 200
    (block,) = Block.objects.open()
    assert (block.reason, block.opened_by) == ("MANUAL", people["operator"])
    assert "looks odd" in block.evidence
    assert client.post("/api/v1/symbols/1/evaluate/").status_code == 200
    assert Event.objects.filter(user=people["operator"], kind="evaluation_requested").exists()


def test_an_operator_asks_for_a_training_and_cancels_it(world: World, call: Call, people: dict[str, User]) -> None:
    client = call("operator")
    assert client.post("/api/v1/runs/1/cancel/", {"why": "not now"}).json()["message"] == "Run 1 was cancelled."
    assert TrainingRun.objects.get(pk=1).state == "cancelled"
    Block.objects.open().update(closed_at=make.EPOCH)
    answer = client.post("/api/v1/runs/start/")
    assert answer.status_code == 200, answer.json()
    (run,) = TrainingRun.objects.open()
    assert run.requested_by == people["operator"]
    detail = client.get(f"/api/v1/runs/{run.pk}/").json()
    assert [each["symbol_code"] for each in detail["run_symbols"]] == ["AAA/USDT:USDT"]


def test_an_admin_steers_the_bot_and_resets_the_kill_switch(world: World, call: Call) -> None:
    client = call("admin")
    assert client.post("/api/v1/bots/main/state/", {"state": "pause"}).status_code == 200
    assert client.post("/api/v1/bots/main/kill/", {"why": "drill"}).status_code == 200
    bot = Bot.objects.get()
    assert bot.desired_state == "pause"
    assert "drill" in bot.kill_switch_reason
    assert client.post("/api/v1/bots/main/reset-kill-switch/").status_code == 200
    assert Bot.objects.get().kill_switch_at is None


def test_an_admin_asks_for_an_activation_that_a_worker_decides(
    world: World, call: Call, people: dict[str, User]
) -> None:
    run = make.TrainingRunFactory(succeeded=True, scope=world.run.scope, run_no=9)
    other = make.ArtifactFactory(run=run, symbols=[world.symbol], requirement=registry.requirement())
    answer = call("admin").post(f"/api/v1/artifacts/{other.pk}/activate/", {"why": "better"})
    assert answer.status_code == 202
    asked = Activation.objects.get(pk=answer.json()["id"])
    assert (asked.state, asked.requested_by, asked.artifact) == ("requested", people["admin"], other)


def test_without_an_earlier_model_a_roll_back_is_refused(world: World, call: Call) -> None:
    problem(call("admin").post("/api/v1/active-models/1/rollback/"), 409)


# --- tokens ---


def test_a_person_gets_a_token_and_gives_it_back(people: dict[str, User]) -> None:
    client = APIClient()
    answer = client.post("/api/v1/token/", {"username": "the-viewer", "password": PASSWORD})
    assert answer.json()["role"] == "viewer"
    client.credentials(HTTP_AUTHORIZATION=f"Token {answer.json()['token']}")
    assert client.get("/api/v1/symbols/").status_code == 200
    assert client.delete("/api/v1/token/").status_code == 204
    assert client.get("/api/v1/symbols/").status_code == 401
    assert not Token.objects.exists()


@pytest.mark.parametrize("user, password", [("the-viewer", "wrong"), ("nobody", PASSWORD), ("stranger", "x")])
def test_a_wrong_password_or_no_role_gets_no_token(people: dict[str, User], user: str, password: str) -> None:
    problem(APIClient().post("/api/v1/token/", {"username": user, "password": password}), 401)


def test_guessing_passwords_is_stopped_for_the_api_and_the_admin_together(
    people: dict[str, User], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tradingsite.api.views_status import TokenView

    monkeypatch.setattr(TokenView, "throttle_classes", [])
    settings.AXES_FAILURE_LIMIT = 3
    for _ in range(3):
        APIClient().post("/api/v1/token/", {"username": "the-viewer", "password": "guess"})
    right = {"username": "the-viewer", "password": PASSWORD}
    assert "axes_reset" in problem(APIClient().post("/api/v1/token/", right), 429)["detail"]
    client = Client()
    assert "Too many wrong passwords" in client.post("/admin/login/", right).content.decode()
    assert "_auth_user_id" not in client.session


# --- the schema ---


@pytest.fixture
def requests_leave_the_connection_open() -> Iterator[None]:
    """As Django's own test client does it: the real application closes what it finds inside a test's transaction."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.mark.slow
@pytest.mark.usefixtures("requests_leave_the_connection_open")
def test_every_answer_conforms_to_the_schema_and_none_is_a_server_error(world: World, people: dict[str, User]) -> None:
    """Random requests of every operation, with an admin's token: what comes back is what the schema promises."""
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    application = get_wsgi_application()
    token = Token.objects.create(user=people["admin"]).key
    headers = {"Authorization": f"Token {token}"}
    schema = schemathesis.openapi.from_wsgi("/api/v1/schema/?format=json", application, headers=headers)
    tried = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/api/v1/schema/" or operation.path == "/api/v1/token/":
            continue  # documents itself; takes the admin's token away

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=4,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def holds(case: Any) -> None:
            answer = case.call(headers=headers)
            case.validate_response(
                answer,
                checks=[
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ],
            )

        holds()
        tried.append(operation.path)
    assert len(tried) > 30


def test_the_committed_schema_is_the_generated_one(tmp_path: Any) -> None:
    fresh = tmp_path / "openapi.yaml"
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(fresh))
    committed = walker.ROOT / "tradingsite" / "openapi.yaml"
    assert committed.read_text() == fresh.read_text(), (
        "the API changed: python manage.py spectacular --validate --fail-on-warn --file tradingsite/openapi.yaml"
    )
