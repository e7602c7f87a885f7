"""Pages with a database that is empty, and with rows: what they say, and what they cost."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, resolve, reverse
from rest_framework.authtoken.models import Token

from ops_app import clock
from ops_app.models import Event, Heartbeat
from tests import factories as make
from tests.site.conftest import World
from tradingsite import dashboard
from tradingsite.templatetags import site_format
from training_app.models import ModelArtifact, TrainingRun

Browse = Callable[[str], Client]
HTMX = {"HTTP_HX_REQUEST": "true"}


def text_of(client: Client, path: str, **headers: str) -> str:
    answer = client.get(path, **headers)
    assert answer.status_code == 200
    return answer.content.decode()


def queries(client: Client, path: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        assert client.get(path).status_code == 200
    return len(captured)


# --- the dashboard ---


def test_an_empty_site_says_what_will_happen_next(now: clock.SimulatedClock, browse: Browse) -> None:
    page = text_of(browse("admin"), "/")
    for words in (
        "Simulated market",
        "No bot yet. Next step:",
        "No model is active",
        "A training starts by itself",
        "No process has said that it lives. Next step:",
        "No open position.",
    ):
        assert words in page


def test_the_dashboard_shows_the_whole(world: World, browse: Browse) -> None:
    Heartbeat.objects.create(
        name="bot:main",
        kind="bot",
        beat_at=clock.real_now() - dt.timedelta(minutes=10),
        ttl_seconds=30,
        pid=1,
        host="h",
    )
    page = text_of(browse("admin"), "/")
    assert "AAA/USDT:USDT" in page
    assert "TRAINING_FAILED</a> 1" in page
    assert "10,000.00" in page
    assert "because NO_MODEL" in page
    assert "silent for 10 min" in page
    assert 'value="close_only"' in page


def test_a_refused_candidate_says_which_gate_refused_it(world: World, browse: Browse) -> None:
    world.active.delete()
    gate = {"name": "skill", "value": 0.1, "bound": 2.0, "passed": False, "text": "t = 0.1 (needs 2)"}
    ModelArtifact.objects.update(gates_passed=False, gates=[gate])
    page = text_of(browse("viewer"), "/")
    assert "The last candidate, v1, was refused" in page
    assert "t = 0.1 (needs 2)" in page


def test_the_refreshed_part_is_a_part_and_the_whole_contains_it(world: World, browse: Browse) -> None:
    part = text_of(browse("viewer"), "/", **HTMX)
    assert "<html" not in part
    assert "Why blocked" in part


@pytest.mark.parametrize("role, buttons", [("viewer", set()), ("operator", {"train-now"}), ("admin", {"bot-kill"})])
def test_each_role_sees_only_the_buttons_that_it_may_press(
    world: World, browse: Browse, role: str, buttons: set[str]
) -> None:
    page = text_of(browse(role), "/")
    for name in ("train-now", "bot-kill", "bot-pause"):
        allowed = name in buttons or (role == "admin")
        assert (f'id="{name}"' in page) == allowed, name


def test_who_asks_for_a_training_is_told_which_run_waits_or_runs(world: World, browse: Browse) -> None:
    client = browse("operator")
    said = client.post("/train", follow=True).content.decode()
    assert f"Run {world.run.pk}, asked for before, waits for a worker." in said
    runs = [world.run, *(TrainingRun(pk=pk, not_before=make.EPOCH) for pk in range(7, 11))]
    made = dashboard.asked_for(runs, before=())
    assert made.startswith(f"Run {world.run.pk} waits for a worker. Run 7 waits")
    assert made.endswith("And 2 more runs: see the admin, Training runs.")


def test_the_exposure_is_that_of_the_positions_that_are_shown(world: World, browse: Browse) -> None:
    assert "100.00 in 1 position <small>(now" in text_of(browse("viewer"), "/")
    make.PositionFactory(bot=world.bot, side=-1, quantity=-3)
    assert "400.00 in 2 positions <small>(now" in text_of(browse("viewer"), "/")


def test_no_page_of_ours_runs_a_script_that_is_written_into_it(world: World, browse: Browse) -> None:
    client = browse("admin")
    for path in ("/", "/symbols/", "/symbols/1/", "/api/v1/docs/", "/api/v1/status/", "/healthz"):
        assert "script-src 'self'" in client.get(path)["Content-Security-Policy"].split("; ")
        assert not re.search(r"<script(?![^>]*\bsrc=)", client.get(path).content.decode()), path
    policy = client.get("/admin/")["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy, "unfold's pages need their own scripts, but no other host's"
    assert "http" not in policy


def test_the_end_of_a_session_does_not_put_the_log_in_page_into_the_dashboard(world: World, client: Client) -> None:
    answer = client.get("/", **HTMX)
    assert (answer.status_code, answer["HX-Refresh"]) == (204, "true")


def test_the_dashboard_costs_the_same_for_any_number_of_symbols(world: World, browse: Browse) -> None:
    client = browse("viewer")
    make.SymbolFactory.create_batch(9)
    few = queries(client, "/")
    for symbol in make.SymbolFactory.create_batch(190):
        make.DecisionFactory(bot=world.bot, symbol=symbol)
    assert queries(client, "/") == few


def test_events_of_single_symbols_do_not_push_out_what_matters(world: World, browse: Browse) -> None:
    make.EventFactory(text="The model was refused.")
    for number in range(40):
        make.EventFactory(subject=f"symbol:{number}", text="MODEL_REJECTED")
    page = text_of(browse("viewer"), "/")
    assert "The model was refused." in page
    assert "MODEL_REJECTED" not in page


def test_the_equity_chart_gets_percent_and_seconds(world: World, browse: Browse) -> None:
    at = make.EPOCH + 3650 * make.DAY  # later than whatever the factories count up to
    make.EquityPointFactory(bot=world.bot, at=at, equity=9000.0, drawdown=0.1)
    data = browse("viewer").get("/equity.json").json()
    assert data["equity"][-1] == {"time": int(at.timestamp()), "value": 9000.0}
    assert data["drawdown"][-1]["value"] == -10.0


def test_the_pages_own_paths_are_reached_by_name_whatever_the_api_calls_its_actions() -> None:
    """The router of the API names its actions like the pages do: without its namespace, a button would call the API."""
    from tradingsite.urls import urlpatterns

    for pattern in urlpatterns:
        if isinstance(pattern, URLPattern) and pattern.name:
            arguments = dict.fromkeys(pattern.pattern.converters, 1)
            assert resolve(reverse(pattern.name, kwargs=arguments)).func == pattern.callback, pattern.name


# --- symbols ---


def test_symbols_are_filtered_and_paged(world: World, browse: Browse) -> None:
    make.SymbolFactory.create_batch(150)
    client = browse("viewer")
    page = text_of(client, "/symbols/")
    assert "Page 1 of 2" in page
    assert "AAA/USDT:USDT" not in text_of(client, "/symbols/?q=c01", **HTMX)
    only = text_of(client, "/symbols/?q=TRAINING_FAILED", **HTMX)
    assert only.count('<th scope="row">') == 1
    assert "No symbol matches" in text_of(client, "/symbols/?q=nothing", **HTMX)
    nope = text_of(client, "/symbols/?state=nope", **HTMX)
    assert "There is no state NOPE: the states are TRADABLE, TRAINING, TRAINABLE, BLOCKED." in nope


def test_the_page_of_a_symbol_says_why_and_when_it_is_looked_at_again(world: World, browse: Browse) -> None:
    page = text_of(browse("operator"), "/symbols/1/")
    assert world.block.evidence in page
    assert "Looked at again at 2025-06-01 01:00" in page
    assert "Unblock" in page
    assert "Unblock" not in text_of(browse("viewer"), "/symbols/1/")


def test_what_should_have_been_looked_at_already_is_marked_as_due(
    world: World, browse: Browse, now: clock.SimulatedClock
) -> None:
    now.advance(2 * make.HOUR)
    client = browse("operator")
    assert "Due to be looked at since 2025-06-01 01:00" in text_of(client, "/symbols/1/")
    assert "06-01 01:00 <small>(due)</small>" in text_of(client, "/symbols/")
    assert "2025-06-01 01:00 (due)" in text_of(client, "/admin/coverage_app/symbol/")


def test_a_person_is_told_what_the_click_did(world: World, browse: Browse, people: dict[str, User]) -> None:
    client = browse("operator")
    answer = client.post("/symbols/1/unblock", follow=True)
    assert "lifted TRAINING_FAILED" in answer.content.decode()
    assert "nothing open to lift" in client.post("/symbols/1/unblock", follow=True).content.decode()
    assert "say why it is blocked" in client.post("/symbols/1/block", {"why": " "}, follow=True).content.decode()


def test_an_admin_pulls_and_resets_the_kill_switch_on_the_dashboard(world: World, browse: Browse) -> None:
    client = browse("admin")
    assert "Kill switch pulled" in client.post("/bots/main/kill", follow=True).content.decode()
    assert "Kill switch of main reset." in client.post("/bots/main/reset", follow=True).content.decode()
    assert (
        "no other model ever served it"
        in client.post("/roll-back", {"slot": world.active.slot}, follow=True).content.decode()
    )


def test_an_unknown_state_is_refused_with_the_known_ones(world: World, browse: Browse) -> None:
    page = browse("admin").post("/bots/main/state", {"state": "sleep"}, follow=True).content.decode()
    assert "sleep" in page
    assert "close_only" in page


# --- the admin ---


def test_the_admin_lists_each_symbol_with_state_and_reason(world: World, browse: Browse) -> None:
    page = text_of(browse("viewer"), "/admin/coverage_app/symbol/")
    assert world.block.evidence in page
    only = "/admin/coverage_app/symbol/?state=TRADABLE"
    assert "AAA/USDT:USDT" not in text_of(browse("viewer"), only)
    assert world.block.evidence in text_of(browse("viewer"), "/admin/coverage_app/symbol/1/change/")


def test_the_admins_list_of_symbols_costs_the_same_for_10_and_200(world: World, browse: Browse) -> None:
    client = browse("operator")
    make.SymbolFactory.create_batch(9)
    few = queries(client, "/admin/coverage_app/symbol/")
    make.SymbolFactory.create_batch(190)
    assert queries(client, "/admin/coverage_app/symbol/?all=") <= few
    assert few < 30


def test_the_log_in_page_says_that_the_market_is_simulated(db: None, client: Client) -> None:
    page = text_of(client, "/admin/login/")
    assert "Simulated market" in page
    assert "No real money" in page


def test_a_token_is_shown_to_nobody_and_an_admin_takes_it_back(
    world: World, browse: Browse, call: Callable[[str], Client], people: dict[str, User]
) -> None:
    machine = call("viewer")
    key = Token.objects.get().key
    client = browse("admin")
    assert client.get("/admin/authtoken/tokenproxy/").status_code == 404
    assert key not in text_of(client, f"/admin/auth/user/{people['viewer'].pk}/change/")
    client.post("/admin/auth/user/", {"action": "revoke_tokens", "_selected_action": people["viewer"].pk})
    assert machine.get("/api/v1/status/").status_code == 401
    assert Event.objects.filter(kind="token_revoked", user=people["admin"]).count() == 1


# --- health ---


def test_ready_means_that_every_process_is_alive(world: World, call: Callable[[str], Client]) -> None:
    assert call("viewer").get("/readyz").json() == {"ready": False, "processes": [], "silent": []}
    row = Heartbeat.objects.create(
        name="bot:main", kind="bot", beat_at=clock.real_now(), ttl_seconds=30, pid=1, host="h"
    )
    answer = call("viewer").get("/readyz")
    assert (answer.status_code, answer.json()["processes"]) == (200, ["bot:main"])
    row.beat_at -= dt.timedelta(hours=1)
    row.save()
    answer = call("viewer").get("/readyz")
    assert (answer.status_code, answer.json()["silent"]) == (503, ["bot:main"])


def test_the_health_check_says_when_the_database_does_not_answer(
    db: None, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError

    from tradingsite import health

    class Broken:
        def cursor(self) -> None:
            raise OperationalError("gone")

    monkeypatch.setattr(health, "connection", Broken())
    assert client.get("/healthz").status_code == 503


def test_metrics_are_prometheus_text(world: World, call: Callable[[str], Client]) -> None:
    answer = call("viewer").get("/metrics")
    assert answer["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"# HELP" in answer.content


# --- how numbers are written ---


@pytest.mark.parametrize(
    "written, expected",
    [
        (site_format.percent(0.0123), "1.23 %"),
        (site_format.percent(None), "–"),
        (site_format.percent(0.5, 0), "50 %"),
        (site_format.signed_percent(0.0123), "+1.23 %"),
        (site_format.signed_percent(-0.0123), "-1.23 %"),
        (site_format.signed_percent(-0.00001), "0.00 %"),
        (site_format.amount(Decimal("-1234.5")), "-1,234.50"),
        (site_format.amount(Decimal("0.001")), "0.00"),
        (site_format.exact(Decimal("101.500000000000")), "101.5"),
        (site_format.exact(Decimal("1E+3")), "1000"),
        (site_format.side(-1), "short"),
        (site_format.side(0), "–"),
        (site_format.duration(dt.timedelta(seconds=90)), "90 s"),
        (site_format.duration(dt.timedelta(days=3)), "3 days"),
        (site_format.details("LOW_COVERAGE: share=0.5"), "share=0.5"),
        (site_format.details("Made by hand: odd"), "Made by hand: odd"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected
