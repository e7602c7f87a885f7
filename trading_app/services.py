"""What people (and the set-up) write into the money tables. The bot's own writes are in the modules of the bot.

Every write by a person leaves who, when and why: in the bot's history, the risk events and the journal (I21).
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction

from ops_app import alerts, clock, journal
from ops_app.choices import Severity
from quant.reasons import reason as reason_text
from trading_app.choices import REAL_MODES, BotMode, DesiredState, KillPolicy, RiskKind
from trading_app.exceptions import TradingError
from trading_app.models import Bot, RiskEvent


def risk_settings() -> dict[str, Any]:
    """Return the limits of the settings, by the names of the bot's fields."""
    return {
        "max_leverage": settings.RISK_MAX_LEVERAGE,
        "max_correlated": settings.RISK_MAX_CORRELATED,
        "max_position": settings.RISK_MAX_POSITION,
        "max_positions": settings.RISK_MAX_POSITIONS,
        "cooldown_bars": settings.RISK_COOLDOWN_BARS,
        "daily_loss_limit": settings.RISK_DAILY_LOSS,
        "max_drawdown": settings.RISK_MAX_DRAWDOWN,
        "on_kill_switch": settings.RISK_ON_KILL_SWITCH,
        "volatility_target": settings.RISK_VOLATILITY_TARGET,
    }


def mode_of_settings() -> BotMode:
    """Return the mode that the settings ask for. The test net of an exchange is another market, with other money."""
    if settings.EXCHANGE == BotMode.LIVE and settings.EXCHANGE_SANDBOX:
        return BotMode.SANDBOX
    return BotMode(settings.EXCHANGE)


def ensure_bot(*, name: str | None = None) -> Bot:
    """Return the bot of the settings; the first call makes its row with the limits of the settings.

    The row is the truth from then on: people change limits there, and a later start does not overwrite them.
    """
    name = name or settings.BOT_NAME
    market, mode = settings.EXCHANGE_MARKET, mode_of_settings()
    if mode in REAL_MODES and Bot.objects.filter(market=market, mode__in=REAL_MODES - {mode}).exists():
        other = BotMode.LIVE if mode == BotMode.SANDBOX else BotMode.SANDBOX
        raise TradingError(
            f"this database belongs to the {other} account of {market}, and EXCHANGE_SANDBOX asks for {mode}: the "
            "orders, positions, candles and models in it must not be taken for those of another exchange. Use another "
            "DATA_DIR (or DATABASE_URL), or set EXCHANGE_SANDBOX back"
        )
    bot, created = Bot.objects.get_or_create(
        name=name,
        defaults={
            "market": market,
            "account": f"{market}:{name}",
            "mode": mode,
            **risk_settings(),
            "created_at": clock.market_now(),
        },
    )
    if not created and (bot.market, bot.mode) != (market, mode):
        raise TradingError(
            f"bot {name!r} trades {bot.market} ({bot.mode}), but the settings say {market} ({mode}): "
            "set EXCHANGE and EXCHANGE_MARKET back, or give the other market's bot its own name with BOT_NAME"
        )
    return bot


def set_desired_state(*, bot: Bot, state: str, user: User | None) -> bool:
    """Ask the bot to run, pause, close only or stop. Returns False when that is asked for already.

    Raises TradingError for a state that does not exist, and for `run` while the kill switch is pulled.
    """
    if state not in DesiredState.values:
        raise TradingError(f"state {state!r} does not exist: choose one of {', '.join(DesiredState.values)}")
    with transaction.atomic():
        row = Bot.objects.select_for_update().get(pk=bot.pk)
        if row.desired_state == state:
            return False
        if state == DesiredState.RUN and row.kill_switch_at is not None:
            raise TradingError(
                f"the kill switch of {row.name} is pulled ({row.kill_switch_reason}): reset it first, then start"
            )
        evidence = reason_text("DESIRED_STATE", was=row.desired_state, now=state)
        row.desired_state = state
        _save_by_person(row, ["desired_state"], user=user, why=evidence)
        _record(row, RiskKind.DESIRED_STATE, evidence, user=user, text=f"{row.name} shall {DesiredState(state).label}")
    bot.desired_state = state
    return True


def pull_kill_switch(*, bot: Bot, reason: str, user: User | None = None) -> bool:
    """Latch the kill switch: no entry until a person resets it (I19). Returns False when it is pulled already.

    The bot's `on_kill_switch` says what becomes of open positions.
    """
    with transaction.atomic():
        row = Bot.objects.select_for_update().get(pk=bot.pk)
        if row.kill_switch_at is not None:
            return False
        row.kill_switch_at = clock.market_now()
        row.kill_switch_reason = reason[:300]
        positions = what_becomes_of_positions(row)
        _save_by_person(row, ["kill_switch_at", "kill_switch_reason"], user=user, why=reason)
        _record(
            row, RiskKind.KILL_SWITCH, reason, user=user, severity=Severity.CRITICAL,
            text=f"Kill switch of {row.name} pulled: {reason}. No entries until a person resets it. {positions}",
        )  # fmt: skip
        alerts.raise_alert(
            _alert_key(row),
            f"Kill switch of {row.name}: {reason}. {positions} Look at them, then reset it on the dashboard.",
            Severity.CRITICAL,
        )  # fmt: skip
    bot.kill_switch_at, bot.kill_switch_reason = row.kill_switch_at, row.kill_switch_reason
    return True


def what_becomes_of_positions(bot: Bot) -> str:
    """Say what becomes of open positions now that the kill switch is pulled."""
    if bot.desired_state == DesiredState.STOP:
        return "The bot is stopped: positions have what rests at the exchange."
    if bot.on_kill_switch == KillPolicy.CLOSE:
        return "All positions are closed now."
    return "Positions go on to their stops, targets and time barriers."


def reset_kill_switch(*, bot: Bot, user: User) -> bool:
    """Open the latch, by a person and by name (I19). Returns False when it was not pulled.

    The peak that drawdown is measured from starts again at the next bar's equity, else the same drawdown would pull the
    switch at once.
    """
    if user is None or not getattr(user, "pk", None):
        raise TradingError("the kill switch is reset by a person, by name: log in and reset it in the admin")
    with transaction.atomic():
        row = Bot.objects.select_for_update().get(pk=bot.pk)
        if row.kill_switch_at is None:
            return False
        was = row.kill_switch_reason
        row.kill_switch_at, row.kill_switch_reason, row.peak_equity = None, "", None
        row.entries_blocked = ""  # what the last bar said; the next bar says what else stops entries
        changed = ["kill_switch_at", "kill_switch_reason", "peak_equity", "entries_blocked"]
        _save_by_person(row, changed, user=user, why=f"reset: {was}")
        _record(
            row, RiskKind.KILL_SWITCH_RESET, reason_text("RESET", was=was), user=user, severity=Severity.WARNING,
            text=f"Kill switch of {row.name} reset by {user.get_username()}. It was: {was}",
        )  # fmt: skip
        alerts.resolve_alert(_alert_key(row))
    bot.kill_switch_at, bot.kill_switch_reason = None, ""
    return True


def record_risk(
    *, bot: Bot, kind: RiskKind, evidence: str, severity: Severity = Severity.WARNING, subject: str = ""
) -> None:
    """Append a risk event of the bot itself, in the journal too."""
    _record(bot, kind, evidence, user=None, severity=severity, text=f"{kind.label}: {evidence}", subject=subject)


def _alert_key(bot: Bot) -> str:
    return f"kill_switch:{bot.name}"


def _save_by_person(row: Bot, fields: list[str], *, user: User | None, why: str) -> None:
    row._history_user = user  # type: ignore[attr-defined]  # simple_history reads both
    row._change_reason = why[:100]  # type: ignore[attr-defined]  # as above
    row.save(update_fields=fields)


def _record(
    bot: Bot,
    kind: RiskKind,
    evidence: str,
    *,
    user: User | None,
    text: str,
    severity: Severity = Severity.INFO,
    subject: str = "",
) -> None:
    RiskEvent.objects.create(bot=bot, kind=kind, evidence=evidence[:500], created_at=clock.market_now(), user=user)
    journal.record(kind.value, text, subject=subject or f"bot:{bot.name}", severity=severity, user=user)
