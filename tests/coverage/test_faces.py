"""What people and machines see of coverage: admin pages, commands, doctor, metrics."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import RequestFactory
from django.urls import reverse

from coverage_app import doctor_checks, market, metrics_sources, services
from coverage_app.models import Block, Symbol
from exchanges.errors import ExchangeUnavailableError, MarketDataError
from marketdata.store import CandleStore
from ops_app.clock import SimulatedClock
from ops_app.doctor import Level
from tests.coverage.scripted_market import ScriptedMarket
from tests.factories import DAY, EPOCH, HOUR, BlockFactory, SymbolFactory, UniverseRefreshFactory

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parents[2]
CODES = ("AAA/USDT:USDT", "BBB/USDT:USDT")


@pytest.fixture
def exchange(settings: Any, store: CandleStore, sim: SimulatedClock) -> ScriptedMarket:
    settings.HISTORY_TARGET_DAYS = 100
    scripted = ScriptedMarket(*CODES)
    market.use(scripted)
    return scripted


def run(command: str, *arguments: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command(command, *arguments, stdout=out, stderr=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


class TestCommands:
    def test_backfill_finds_the_universe_and_fetches_it(self, exchange: ScriptedMarket) -> None:
        code, text = run("backfill", "--json")
        assert code == 0
        document = json.loads(text)
        assert (document["symbols"], document["candles"], document["failed"]) == (2, 2 * 2400, {})
        assert document["evaluated"] == 2
        assert json.loads(run("backfill", "--json")[1])["candles"] == 0

    def test_backfill_names_who_failed_and_ends_with_one(self, exchange: ScriptedMarket) -> None:
        def refuse(_: Any) -> Any:
            raise MarketDataError(CODES[0], "HTTP 500")

        exchange.trouble[CODES[0]] = refuse
        code, text = run("backfill")
        assert code == 1
        assert f"{CODES[0]}: MARKET_DATA: error=HTTP 500" in text

    def test_backfill_fetches_a_month_again_whose_file_is_gone(
        self, exchange: ScriptedMarket, store: CandleStore
    ) -> None:
        run("backfill")
        (store.root / "simulated" / "1h" / "2025-04.parquet").unlink()
        document = json.loads(run("backfill", "--json")[1])
        assert document["fetched_again"] == list(CODES)
        assert len(store.read("simulated", "1h")[CODES[0]]) == 2400

    def test_backfill_refuses_a_symbol_that_it_does_not_know(self, exchange: ScriptedMarket) -> None:
        run("backfill")
        assert json.loads(run("backfill", "--symbols", "AAA", CODES[1], "--json")[1])["symbols"] == 2
        with pytest.raises(CommandError, match="'ZZZ': it is not in the universe of simulated"):
            call_command("backfill", "--symbols", "ZZZ")

    def test_backfill_stops_when_the_exchange_is_down(self, exchange: ScriptedMarket) -> None:
        services.refresh_universe()
        exchange.outage = ExchangeUnavailableError("maintenance")
        code, text = run("backfill", "--json")
        assert (code, json.loads(text)["unavailable"]) == (1, "maintenance")

    def test_coverage_lists_symbols_with_what_is_against_them(self, sim: SimulatedClock) -> None:
        SymbolFactory(code="BTC/USDT:USDT")
        BlockFactory(symbol__code="LUNA/USDT:USDT", reason="PRICE_BREAK", evidence="PRICE_BREAK: gap_bars=437")
        code, text = run("coverage")
        assert code == 0
        assert "2 symbols, 2 in the universe, 1 ready, 1 blocked" in " ".join(text.split())
        document = json.loads(run("coverage", "--json")[1])
        assert document["summary"]["by_reason"] == {"PRICE_BREAK": 1}
        assert [row["code"] for row in document["symbols"]] == ["BTC/USDT:USDT", "LUNA/USDT:USDT"]
        assert document["symbols"][1]["blocks"][0]["evidence"] == "PRICE_BREAK: gap_bars=437"
        evidence = "STALE_DATA: last_candle=2025-05-01T00:00Z, bars_late=700, allowed=3, and_so_on=" + 80 * "x"
        BlockFactory(symbol__code="ETH/USDT:USDT", reason="STALE_DATA", evidence=evidence)
        assert evidence in run("coverage")[1], "what is no terminal has no width to cut at"
        only = json.loads(run("coverage", "--json", "--reason", "PRICE_BREAK")[1])
        assert [row["code"] for row in only["symbols"]] == ["LUNA/USDT:USDT"]


class TestAdmin:
    @pytest.fixture
    def operator(self) -> User:
        user = User.objects.create_user("olga", password="secret-of-a-test", is_staff=True)
        names = ("view_symbol", "change_symbol", "view_block", "change_block", "view_universerefresh")
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        return user

    @pytest.fixture
    def viewer(self) -> User:
        user = User.objects.create_user("vera", password="secret-of-a-test", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=("view_symbol", "view_block")))
        return user

    def act(self, client: Any, action: str, symbol: Symbol, **extra: str) -> Any:
        data = {"action": action, "_selected_action": [symbol.pk], **extra}
        return client.post(reverse("admin:coverage_app_symbol_changelist"), data, follow=True)

    def test_every_list_and_page_opens(self, sim: SimulatedClock, client: Any, operator: User) -> None:
        client.force_login(operator)
        block = BlockFactory()
        UniverseRefreshFactory(error="no route to the exchange")
        for name in ("symbol", "block", "universerefresh"):
            assert client.get(reverse(f"admin:coverage_app_{name}_changelist")).status_code == 200
        for query in ("block=none", "block=any", "block=TRAINING_FAILED", "in_universe__exact=1"):
            assert client.get(reverse("admin:coverage_app_symbol_changelist") + "?" + query).status_code == 200
        page = client.get(reverse("admin:coverage_app_symbol_change", args=[block.symbol_id]))
        assert block.evidence in page.content.decode()

    def test_the_list_costs_the_same_for_any_number_of_symbols(
        self, sim: SimulatedClock, client: Any, operator: User, django_assert_max_num_queries: Any
    ) -> None:
        client.force_login(operator)
        for symbol in SymbolFactory.create_batch(60):
            BlockFactory(symbol=symbol)
        with django_assert_max_num_queries(16):
            client.get(reverse("admin:coverage_app_symbol_changelist"))

    def test_an_operator_blocks_with_a_reason_and_lifts_it(
        self, sim: SimulatedClock, client: Any, operator: User
    ) -> None:
        client.force_login(operator)
        symbol = SymbolFactory()
        page = self.act(client, "block", symbol, why="")
        assert "why is empty" in page.content.decode()
        page = self.act(client, "block", symbol, why="rumours")
        assert "blocked until a person lifts it" in page.content.decode()
        block = Block.objects.get()
        assert (block.opened_by, block.evidence) == (operator, "MANUAL: by=olga, why=rumours")
        page = self.act(client, "unblock", symbol)
        assert "lifted MANUAL" in page.content.decode()
        assert not Block.objects.open().exists()
        page = self.act(client, "evaluate_now", symbol)
        assert "1 symbols are evaluated now" in page.content.decode()

    def test_a_viewer_sees_and_cannot_act(self, sim: SimulatedClock, client: Any, viewer: User) -> None:
        client.force_login(viewer)
        symbol = SymbolFactory()
        assert client.get(reverse("admin:coverage_app_symbol_changelist")).status_code == 200
        self.act(client, "block", symbol, why="mischief")
        assert not Block.objects.exists()

    def test_nobody_edits_adds_or_deletes_rows(self, rf: RequestFactory, sim: SimulatedClock, admin_user: User) -> None:
        from django.contrib import admin

        request = rf.get("/")
        request.user = admin_user
        for model in (Symbol, Block):
            page = admin.site._registry[model]
            assert not page.has_add_permission(request)
            assert not page.has_change_permission(request)
            assert not page.has_delete_permission(request)


class TestDoctor:
    def test_all_is_well_after_a_backfill(self, exchange: ScriptedMarket) -> None:
        run("backfill")
        for name in ("universe", "candle_store", "candles", "coverage"):
            finding = getattr(doctor_checks, name)()
            assert finding.level is Level.OK, finding

    def test_it_says_what_lies_idle_and_what_to_do(self, exchange: ScriptedMarket, sim: SimulatedClock) -> None:
        assert doctor_checks.universe().level is Level.WARNING
        run("backfill")
        sim.advance(DAY)
        for name in ("universe", "candles", "coverage"):
            finding = getattr(doctor_checks, name)()
            assert finding.level is Level.WARNING, finding
            assert "worker" in finding.fix

    def test_it_finds_lost_and_torn_files(self, exchange: ScriptedMarket, store: CandleStore) -> None:
        run("backfill")
        newest = store.root / "simulated" / "1h" / "2025-05.parquet"
        content = newest.read_bytes()
        newest.write_bytes(content[:-100])
        torn = doctor_checks.candle_store()
        assert torn.level is Level.PROBLEM
        assert str(newest) in torn.fix
        newest.unlink()
        lost = doctor_checks.candle_store()
        assert "candles of 2 symbols are not in the store" in lost.text

    def test_it_names_failing_symbols(self, exchange: ScriptedMarket) -> None:
        UniverseRefreshFactory(error="no route")
        SymbolFactory(code=CODES[0], ingest_failures=3, ingest_error="MARKET_DATA: error=HTTP 500")
        SymbolFactory(evaluation_failures=1)
        assert "no route" in doctor_checks.universe().text
        assert "HTTP 500" in doctor_checks.candles().text
        assert doctor_checks.coverage().level is Level.PROBLEM


def test_metrics_count_by_reason(sim: SimulatedClock, django_assert_max_num_queries: Any) -> None:
    SymbolFactory.create_batch(2)
    BlockFactory(symbol__next_evaluation_at=EPOCH - HOUR, reason="LOW_COVERAGE")
    with django_assert_max_num_queries(5):
        families = {family.name: family for family in metrics_sources.coverage()}
    assert [(sample.labels, sample.value) for sample in families["tradingbot_open_blocks"].samples] == [
        ({"reason": "LOW_COVERAGE"}, 1)
    ]
    symbols = {sample.labels["what"]: sample.value for sample in families["tradingbot_symbols"].samples}
    assert symbols == {"listed": 3, "in_universe": 3, "ready": 2, "blocked": 1, "backfilled": 3}
    late = {sample.labels["work"]: sample.value for sample in families["tradingbot_symbols_late"].samples}
    assert late["evaluation"] == 1


def test_what_the_web_process_imports_of_coverage_is_light() -> None:
    """Pages, services and metrics are imported by web, which must never pay for pandas, numba, LightGBM or ccxt."""
    program = (
        "import os, sys, django\n"
        "os.environ['DJANGO_SETTINGS_MODULE'] = 'tradingsite.settings'\n"
        "django.setup()\n"
        "import coverage_app.admin, coverage_app.services, coverage_app.selectors, coverage_app.tasks\n"
        "import coverage_app.metrics_sources, coverage_app.doctor_checks\n"
        "heavy = {'pandas', 'numba', 'lightgbm', 'ccxt', 'sklearn', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
