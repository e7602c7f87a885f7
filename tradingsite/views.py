"""Pages: they show rows, and call services for what people ask. They never call an exchange."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views import defaults
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from coverage_app import services as coverage
from coverage_app.exceptions import CoverageError
from coverage_app.models import Symbol
from ops_app.people import acting_user
from quant.reasons import reason
from trading_app import services as trading
from trading_app.choices import DesiredState
from trading_app.exceptions import TradingError
from trading_app.models import Bot
from tradingsite import dashboard as pages
from tradingsite.api.problems import MEDIA_TYPE as PROBLEM
from tradingsite.permissions import ADMIN, OPERATOR, VIEWER, has_role
from training_app import activation
from training_app import services as training
from training_app.exceptions import TrainingAppError
from training_app.selectors import open_runs

View = Callable[..., HttpResponse]


def needs(role: str) -> Callable[[View], View]:
    """Let only people with `role` or a higher one in; the others learn which role is needed."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponse:
            if not request.user.is_authenticated:
                if request.headers.get("HX-Request"):  # a page that refreshes itself must not swallow the log-in page
                    return HttpResponse(status=204, headers={"HX-Refresh": "true"})
                return redirect_to_login(request.get_full_path())
            if not has_role(request.user, role):
                raise PermissionDenied(f"This needs the role {role}. Ask an admin.")
            return view(request, *args, **kwargs)

        return guarded

    return decorate


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer a path that is nothing: to machines in the form of all errors of the API, to people with a page."""
    if not request.path.startswith("/api/"):
        return defaults.page_not_found(request, exception)
    detail = f"There is nothing at {request.path}: /api/v1/ lists what there is, /api/v1/docs/ describes it."
    body = {"type": "about:blank", "title": "Not Found", "status": 404, "detail": detail}
    return JsonResponse(body, status=404, content_type=PROBLEM)


def may(request: HttpRequest) -> dict[str, bool]:
    return {"may_operate": has_role(request.user, OPERATOR), "may_admin": has_role(request.user, ADMIN)}


@require_safe
@never_cache
@needs(VIEWER)
def dashboard(request: HttpRequest) -> HttpResponse:
    """The whole on one page; htmx asks for the changing part every few seconds."""
    template = "site/parts/overview.html" if request.headers.get("HX-Request") else "site/dashboard.html"
    return render(request, template, {**pages.overview(), **may(request)})


@require_safe
@never_cache
@needs(VIEWER)
def equity_data(_request: HttpRequest) -> HttpResponse:
    return JsonResponse(pages.equity_chart())


@require_safe
@never_cache
@needs(VIEWER)
def symbols(request: HttpRequest) -> HttpResponse:
    """Every symbol with its state and the reason for it."""
    found = pages.symbol_list(
        state=request.GET.get("state", ""), query=request.GET.get("q", ""), page=request.GET.get("page", "1")
    )
    template = "site/parts/symbol_rows.html" if request.headers.get("HX-Request") else "site/symbols.html"
    return render(request, template, found)


@require_safe
@never_cache
@needs(VIEWER)
def symbol(request: HttpRequest, pk: int) -> HttpResponse:
    """One symbol: candles, signals, probability, trades, and the timeline of its states."""
    found = get_object_or_404(Symbol, pk=pk)
    template = "site/parts/symbol_refresh.html" if request.headers.get("HX-Request") else "site/symbol.html"
    return render(request, template, {**pages.symbol_page(found), **may(request)})


@require_safe
@never_cache
@needs(VIEWER)
def symbol_data(_request: HttpRequest, pk: int) -> HttpResponse:
    return JsonResponse(pages.candle_chart(get_object_or_404(Symbol, pk=pk)))


# --- what people ask for: each calls one service and says what it did ----------------------------------------------


def _do(request: HttpRequest, work: Callable[[], str], back: str, **arguments: int) -> HttpResponse:
    try:
        messages.success(request, work())
    except (CoverageError, TradingError, TrainingAppError) as error:
        messages.error(request, str(error))
    return redirect(reverse(back, kwargs=arguments))


@require_POST
@needs(ADMIN)
def bot_state(request: HttpRequest, name: str) -> HttpResponse:
    bot = get_object_or_404(Bot, name=name)
    state = request.POST.get("state", "")

    def work() -> str:
        changed = trading.set_desired_state(bot=bot, state=state, user=acting_user(request))
        return f"{bot.name}: {DesiredState(state).label}{'' if changed else ' (it was asked for already)'}."

    return _do(request, work, "dashboard")


@require_POST
@needs(ADMIN)
def bot_kill(request: HttpRequest, name: str) -> HttpResponse:
    bot = get_object_or_404(Bot, name=name)

    def work() -> str:
        why = reason("MANUAL", by=acting_user(request).get_username())
        pulled = trading.pull_kill_switch(bot=bot, reason=why, user=acting_user(request))
        if not pulled:
            return "The kill switch was pulled already."
        return f"Kill switch of {bot.name} pulled: no entries. {trading.what_becomes_of_positions(bot)}"

    return _do(request, work, "dashboard")


@require_POST
@needs(ADMIN)
def bot_reset(request: HttpRequest, name: str) -> HttpResponse:
    bot = get_object_or_404(Bot, name=name)

    def work() -> str:
        opened = trading.reset_kill_switch(bot=bot, user=acting_user(request))
        return f"Kill switch of {bot.name} reset." if opened else "The kill switch was not pulled."

    return _do(request, work, "dashboard")


@require_POST
@needs(OPERATOR)
def train(request: HttpRequest) -> HttpResponse:
    def work() -> str:
        before = {run.pk for run in open_runs()}
        return pages.asked_for(training.train_now(user=acting_user(request)), before=before)

    return _do(request, work, "dashboard")


@require_POST
@needs(ADMIN)
def roll_back(request: HttpRequest) -> HttpResponse:
    slot, person = request.POST.get("slot", ""), acting_user(request)

    def work() -> str:
        asked = activation.roll_back(slot=slot, user=person, reason="on the dashboard")
        return f"Roll-back to {asked.artifact} is asked for; a worker verifies it first."

    return _do(request, work, "dashboard")


@require_POST
@needs(OPERATOR)
def symbol_unblock(request: HttpRequest, pk: int) -> HttpResponse:
    found, person = get_object_or_404(Symbol, pk=pk), acting_user(request)
    return _do(request, lambda: coverage.unblock(symbol=found, user=person).text, "symbol", pk=pk)


@require_POST
@needs(OPERATOR)
def symbol_block(request: HttpRequest, pk: int) -> HttpResponse:
    found, person, why = get_object_or_404(Symbol, pk=pk), acting_user(request), request.POST.get("why", "")
    return _do(request, lambda: coverage.block_manually(symbol=found, user=person, why=why).text, "symbol", pk=pk)


@require_POST
@needs(OPERATOR)
def symbol_evaluate(request: HttpRequest, pk: int) -> HttpResponse:
    found, person = get_object_or_404(Symbol, pk=pk), acting_user(request)
    return _do(request, lambda: coverage.evaluate_now(symbol_ids=[found.pk], user=person).text, "symbol", pk=pk)
