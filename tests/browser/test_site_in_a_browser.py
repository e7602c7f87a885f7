"""The pages in a real Chromium: they fill by themselves, draw, act on clicks, and fit a phone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from coverage_app.market import candle_store
from coverage_app.models import Block
from ops_app import clock, queue
from quant.candles import Candles
from quant.timeframes import to_ms
from tests import factories as make
from trading_app.models import Bot
from training_app.models import TrainingRun

PASSWORD = "a-long-secret-of-tests"
CODE = "AAA/USDT:USDT"
HOUR_MS = 3_600_000
CANDLES = 48

expect.set_options(timeout=30_000)  # milliseconds: the default of 5 s is little on a busy machine


@pytest.fixture
def world(transactional_db: None) -> Iterator[None]:
    """A bot, a blocked symbol with candles and a decision, a training that runs, and somebody who may do anything."""
    with clock.simulated(make.EPOCH), queue.capture():
        User.objects.create_superuser("root", password=PASSWORD)
        symbol = make.SymbolFactory(code=CODE)
        make.BlockFactory(symbol=symbol)
        bot = make.BotFactory(name="main")
        for hour in range(30):
            at = make.EPOCH - dt.timedelta(hours=30 - hour)
            make.EquityPointFactory(bot=bot, at=at, equity=10_000.0 + 10 * hour, drawdown=0.001 * (hour % 3))
        make.DecisionFactory(bot=bot, symbol=symbol, side=1, probability=0.61, outcome="ENTER", reason="")
        running = make.TrainingRunFactory(running=True, stage="fold 1 of 3", progress=0.2, log="read " * 99)
        make.RunSymbolFactory(run=running)
        write_candles()
        yield


def write_candles() -> None:
    start = to_ms(make.EPOCH) - CANDLES * HOUR_MS
    price = 100 + np.sin(np.arange(CANDLES) / 5)
    candles = Candles(
        open_time=start + HOUR_MS * np.arange(CANDLES, dtype=np.int64),
        open=price, high=price + 1, low=price - 1, close=price + 0.5, volume=np.ones(CANDLES),
    )  # fmt: skip
    candle_store().write(make.MARKET, "1h", {CODE: candles})


class Watched:
    """A page whose console and requests are watched: nothing may go wrong silently, nothing may leave the host."""

    def __init__(self, page: Page, host: str) -> None:
        self.page = page
        self.errors: list[str] = []
        self.outside: list[str] = []
        page.on("console", lambda said: self.errors.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._note(request.url, host))

    def _note(self, url: str, host: str) -> None:
        parts = urlparse(url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.netloc != host:
            self.outside.append(url)


@pytest.fixture
def watched(world: None, live_server: Any, page: Page) -> Iterator[Watched]:
    """A browser that is logged in, at the dashboard."""
    seen = Watched(page, urlparse(live_server.url).netloc)
    page.goto(live_server.url + "/")
    expect(page.get_by_text("Simulated market")).to_be_visible()
    page.get_by_label("Username").fill("root")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(live_server.url + "/")
    yield seen
    assert seen.errors == []
    assert seen.outside == []


def no_sideways_scrolling(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_the_dashboard_is_labelled_draws_equity_and_fills_by_itself(watched: Watched) -> None:
    page = watched.page
    expect(page.locator(".badge.market")).to_have_text("Simulated market")
    expect(page.locator("#equity-chart canvas").first).to_be_visible()
    expect(page.locator("#equity-chart")).to_have_attribute("data-points", "30")
    expect(page.get_by_text("fold 1 of 3")).to_be_visible()

    TrainingRun.objects.filter(state="running").update(stage="fold 2 of 3", progress=0.5)
    make.EquityPointFactory(bot=Bot.objects.get(), at=make.EPOCH, equity=12_345.0)

    expect(page.get_by_text("fold 2 of 3")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("12,345.00")).to_be_visible(timeout=60_000)
    expect(page.locator("#equity-chart")).to_have_attribute("data-points", "31", timeout=60_000)


def test_a_click_pauses_the_bot(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("main: Pause")
    assert Bot.objects.get().desired_state == "pause"


def test_what_closes_positions_is_asked_once_more(watched: Watched) -> None:
    page = watched.page
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Close only").click()
    assert Bot.objects.get().desired_state == "run"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Close only").click()
    expect(page.get_by_role("status")).to_contain_text("main: Close only")
    assert Bot.objects.get().desired_state == "close_only"


def test_the_page_of_a_symbol_draws_its_candles_and_a_click_unblocks_it(watched: Watched, live_server: Any) -> None:
    page = watched.page
    page.goto(live_server.url + "/symbols/")
    page.get_by_label("Code or reason").fill("TRAINING_FAILED")
    expect(page.locator("#rows tbody tr")).to_have_count(1)
    page.get_by_role("link", name=CODE).click()
    expect(page.locator("#candle-chart canvas").first).to_be_visible()
    expect(page.locator("#candle-chart")).to_have_attribute("data-points", str(CANDLES))
    expect(page.locator("#symbol-state")).to_contain_text("TRAINING_FAILED")

    page.get_by_role("button", name="Unblock").click()
    expect(page.get_by_role("status")).to_contain_text("lifted TRAINING_FAILED")
    expect(page.locator("#symbol-state")).not_to_contain_text("BLOCKED")
    assert not Block.objects.open().exists()


def test_the_page_of_a_symbol_follows_what_happens(watched: Watched, live_server: Any) -> None:
    page = watched.page
    block = Block.objects.get()
    page.goto(f"{live_server.url}/symbols/{block.symbol_id}/")
    page.get_by_label("Block, because").fill("half a sentence")
    Block.objects.update(evidence="TRAINING_FAILED: now=another text")
    expect(page.locator("#symbol-state")).to_contain_text("now=another text", timeout=60_000)
    expect(page.locator("#symbol-details")).to_contain_text("now=another text")
    expect(page.get_by_label("Block, because")).to_have_value("half a sentence")


def test_nothing_scrolls_sideways_on_a_phone(watched: Watched, live_server: Any) -> None:
    page = watched.page
    page.set_viewport_size({"width": 390, "height": 844})
    symbol = Block.objects.get().symbol_id
    run_page = f"/admin/training_app/trainingrun/{TrainingRun.objects.get().pk}/change/"
    for path in ("/", "/symbols/", f"/symbols/{symbol}/", "/admin/coverage_app/symbol/", run_page):
        page.goto(live_server.url + path)
        expect(page.locator("h1, #content").first).to_be_attached()
        assert no_sideways_scrolling(page), path
    page.set_viewport_size({"width": 1280, "height": 900})
    assert no_sideways_scrolling(page), "the page of a run, on a small notebook"


def test_a_page_that_gets_no_answer_says_that_it_is_stale(watched: Watched) -> None:
    page = watched.page
    page.route("**/*", lambda route: route.abort())
    expect(page.get_by_text("The site does not answer since")).to_be_visible(timeout=60_000)
    page.unroute("**/*")
    expect(page.get_by_text("The site does not answer since")).to_be_hidden(timeout=60_000)
    assert watched.errors, "the browser itself reports what it could not fetch"
    watched.errors.clear()
