"""`manage.py runbot`: trade one account. The loop is in `trading_app.bot`; tests call its `tick()`."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from exchanges.errors import ConfigurationError
from ops_app import guards, versions
from ops_app.process import on_stop
from trading_app import services, takeover
from trading_app.exceptions import AccountBusyError, TradingError
from trading_app.models import Bot

BUSY_EXIT_CODE = 3


class Command(BaseCommand):
    help = "Trade: keep the account's lease, decide each closed candle once, protect what is open. Stops on SIGTERM."
    requires_migrations_checks = False
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--bot", default=None, help="Name of the bot (default: BOT_NAME).")
        parser.add_argument("--once", action="store_true", help="One pass, then stop; says what it did.")
        parser.add_argument("--max-ticks", type=int, default=None, help="Stop after this many passes.")
        parser.add_argument("--interval", type=float, default=None, help="Real seconds between passes (BOT_INTERVAL).")

    def handle(self, *, bot: str | None, once: bool, max_ticks: int | None, interval: float | None, **_: Any) -> None:
        for name, value in (("--max-ticks", max_ticks), ("--interval", interval)):
            if value is not None and value <= 0:
                raise CommandError(f"{name} is {value}: it must be above 0. Leave it out for the default.")
        guards.require_migrated()
        try:
            row = find_bot(bot)
        except TradingError as error:
            raise CommandError(str(error)) from error
        from trading_app.bot import BotRunner, pass_interval  # numba and LightGBM: not for `--help`

        try:
            runner = BotRunner(row)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        stopping = False
        watch = versions.Watch()

        def stop() -> None:
            nonlocal stopping
            stopping = True

        def stopped() -> bool:
            return stopping or watch.outdated()

        with on_stop(stop):
            try:
                lease = takeover.wait_for_account(row, holder=runner.holder, ttl=runner.lease_ttl, stopped=stopped)
            except AccountBusyError as error:
                raise CommandError(str(error), returncode=BUSY_EXIT_CODE) from error
            if lease is None:
                explain(watch)
                return
            runner.adopt(lease)
            try:
                if once:
                    self.stdout.write(str(runner.tick()))
                else:
                    runner.run(interval=interval or pass_interval(), stopped=stopped, max_ticks=max_ticks)
            finally:
                runner.release()
            explain(watch)


def explain(watch: versions.Watch) -> None:
    """End with the exit code that no supervisor answers with a restart if the database has become newer."""
    if watch.reason:
        raise CommandError(watch.reason, returncode=versions.OUTDATED)


def find_bot(name: str | None) -> Bot:
    """Return the bot by name; the one of the settings is made when it is missing. Raises TradingError."""
    if name is None or name == settings.BOT_NAME:
        return services.ensure_bot()
    found = Bot.objects.filter(name=name).first()
    if found is None:
        names = ", ".join(Bot.objects.values_list("name", flat=True)) or "none"
        raise TradingError(f"bot {name!r} does not exist; there are: {names}. BOT_NAME={name} makes one at its start.")
    return found
