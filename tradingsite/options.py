"""Every setting that a person may change: one declarative table, validated in one place.

A value comes from the environment, from `NAME_FILE` (a path to a file that holds it: for secrets), or from `.env` in
the project folder, in this order. Keys of an account are read by the process that trades, and by no other. An unknown
name with one of our prefixes is an error, because a misspelt limit that is silently ignored costs money.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from exchanges.keys import Secret, read_private_file, require_private
from marketdata.places import parse_storage_url
from quant.risk import MOST_COOLDOWN_BARS

TIMEFRAMES = ("5m", "15m", "1h", "4h", "1d")
TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True)
class Option:
    """A setting: `parse` turns its text into a value or raises ValueError with the rule.

    A `late` one is a secret that stays where it is until somebody reads it: its value is a `Secret`, or the default.
    """

    name: str
    default: Any
    parse: Callable[[str], Any]
    help: str
    secret: bool = False
    late: bool = False


def text(raw: str) -> str:
    return raw.strip()


def boolean(raw: str) -> bool:
    word = raw.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError(f"must be one of {', '.join(sorted(TRUE_WORDS | FALSE_WORDS))}")


def integer(low: int, high: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        rule = f"must be a whole number from {low} to {high}"
        try:
            value = int(raw)
        except ValueError as error:
            raise ValueError(rule) from error
        if not low <= value <= high:
            raise ValueError(rule)
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        rule = f"must be a number from {low:g} to {high:g}"
        try:
            value = float(raw)
        except ValueError as error:
            raise ValueError(rule) from error
        if not low <= value <= high:  # also refuses NaN
            raise ValueError(rule)
        return value

    return parse


def choice(*choices: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        value = raw.strip().lower()
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return value

    return parse


def words(raw: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[,\s]+", raw.strip()) if word)


def storage_url(raw: str) -> str:
    parse_storage_url(raw)
    return raw.strip()


def base_url(raw: str) -> str:
    value = raw.strip().rstrip("/")
    found = re.fullmatch(r"(https?)://([^\s/@:]+)(:\d+)?", value)
    if not found:
        raise ValueError("must be like http://127.0.0.1:8765, without a path")
    if found[1] == "http" and found[2] not in ("127.0.0.1", "localhost"):
        raise ValueError("must be https:// unless it is this machine")
    return value


def dask_scheduler(raw: str) -> str:
    value = raw.strip()
    if not re.fullmatch(r"(tcp|tls)://[^\s/@]+:\d+", value):
        raise ValueError("must be an address like tcp://host:8786 (or tls://)")
    return value


def day(raw: str) -> str:
    value = raw.strip()
    if value and not re.fullmatch(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2})?", value):
        raise ValueError("must be a UTC date like 2025-06-01 or 2025-06-01T12:00")
    return value


OPTIONS: tuple[Option, ...] = (
    # --- the site
    Option("DATA_DIR", "var", text, "Folder for the database, candles, artifacts and logs."),
    Option("SECRET_KEY", "", text, "Django's secret key; empty: one is made once and kept in DATA_DIR.", secret=True),
    Option("DEBUG", False, boolean, "Django's debug pages. Never on a machine that others reach."),
    Option("ALLOWED_HOSTS", ("localhost", "127.0.0.1", "[::1]"), words, "Host names that the site answers to."),
    Option("CSRF_TRUSTED_ORIGINS", (), words, "Origins like https://bot.example.org behind a proxy."),
    Option("HTTPS", False, boolean, "The site is served over HTTPS: secure cookies, HSTS, redirect."),
    Option("DATABASE_URL", "", text, "postgres://user@host:5432/name; empty: SQLite in DATA_DIR.", secret=True),
    Option("REDIS_URL", "", text, "redis://host:6379/0 as the queue's broker; empty: the database.", secret=True),
    Option(
        "STORAGE_URL",
        "",
        storage_url,
        "Candles and models on several hosts: file:///shared/folder or s3://bucket/prefix; empty: in DATA_DIR.",
        secret=True,
    ),
    Option("WEB_BIND", "127.0.0.1:8000", text, "Address and port of the web server."),
    Option("WEB_WORKERS", 2, integer(1, 64), "Web server processes."),
    Option("QUEUE_WORKERS", 2, integer(1, 64), "Worker processes for light tasks (universe, candles, coverage)."),
    Option("TRAINING_WORKERS", 1, integer(1, 64), "Trainings at the same time on this host."),
    Option("HOST_CORES", 0, integer(0, 1024), "Cores that this host's trainings share; 0: all that it may use."),
    Option("HOST_MEMORY_MB", 0, integer(0, 2**30), "Memory that they share; 0: 3/4 of the machine or container."),
    Option("LOG_LEVEL", "info", choice("debug", "info", "warning", "error"), "Least level that is logged."),
    Option("LOG_FORMAT", "console", choice("console", "json"), "Log lines for people or for machines."),
    Option("ALERT_URLS", (), words, "apprise URLs that alerts are sent to; empty: alerts are only shown.", secret=True),
    # --- keeping
    Option("BACKUP_DIR", "", text, "Folder for backups, best on another disk; empty: `backups` in DATA_DIR."),
    Option("BACKUP_INTERVAL_HOURS", 0, integer(0, 720), "A backup is taken every so many hours; 0: never by itself."),
    Option("BACKUP_KEEP", 7, integer(1, 1000), "How many backups of the job stay."),
    Option("RETENTION_DAYS", 730, integer(30, 10_000), "Days (market time) that decisions and their reasons stay."),
    # --- the exchange and its time
    Option(
        "EXCHANGE",
        "simulated",
        choice("simulated", "replay", "paper", "live"),
        "Where candles and fills come from. `live` sends real orders (docs/going-live.md).",
    ),
    Option("EXCHANGE_MARKET", "", text, "Market key: an archive's folder (replay), a ccxt id (paper), bybit (live)."),
    Option("EXCHANGE_SANDBOX", False, boolean, "Use the exchange's test net, with its own keys (paper, live)."),
    Option("EXCHANGE_URL", "", base_url, "For tests: address of a loopback exchange instead of the real one."),
    Option("LIVE_TRADING_CONFIRM", "", text, "Name of the bot (BOT_NAME) that may send real orders; empty: none may."),
    Option("MARGIN_MODE", "", choice("cross", "isolated"), "Margin mode of the live account; empty: left as it is."),
    Option("API_KEY", "", text, "Key of the live account; best as API_KEY_FILE, a file of mode 600.", True, True),
    Option("API_SECRET", "", text, "Its secret; best as API_SECRET_FILE.", True, True),
    Option("API_PASSPHRASE", "", text, "Its passphrase, for exchanges that want one.", True, True),
    Option("CANDLE_ARCHIVE", "", text, "Folder of Parquet candles for EXCHANGE=replay."),
    Option("REPLAY_FROM", "", day, "UTC date at which the replay's clock starts."),
    Option("REPLAY_SPEED", 60.0, number(1, 100_000), "Seconds of market time per real second in a replay."),
    Option("SIM_SPEED", 60.0, number(1, 100_000), "Seconds of market time per real second on the simulated exchange."),
    Option("SIM_SEED", 7, integer(0, 2**31 - 1), "Seed of the simulated market."),
    Option("SIM_SYMBOLS", 40, integer(1, 5000), "Ordinary symbols of the simulated market."),
    Option("SIM_LEARNABLE", True, boolean, "Whether the simulated market has a part that can be learnt."),
    Option("INITIAL_BALANCE", 10_000.0, number(1, 1e12), "Balance of a simulated, replay or paper account."),
    # --- universe and coverage
    Option("UNIVERSE_MODE", "automatic", choice("automatic", "fixed"), "Choose symbols by rules or by a list."),
    Option("UNIVERSE_SYMBOLS", (), words, "Codes like BTC/USDT:USDT for UNIVERSE_MODE=fixed."),
    Option("UNIVERSE_MAX_SYMBOLS", 500, integer(1, 10_000), "Most symbols in an automatic universe, by volume."),
    Option("UNIVERSE_MAX_ROTATION", 0.1, number(0, 1), "Share of it that may leave at one refresh; at least one may."),
    Option("UNIVERSE_MIN_VOLUME", 100_000.0, number(0, 1e12), "Least 24 h volume in the quote currency."),
    Option("UNIVERSE_MAX_SPREAD_BPS", 30.0, number(0, 10_000), "Widest spread in basis points."),
    Option("UNIVERSE_MIN_AGE_DAYS", 0.0, number(0, 4000), "Least days since the listing; younger ones never enter."),
    Option("UNIVERSE_EXCLUDE", (), words, "Codes that never enter an automatic universe."),
    Option("TIMEFRAME", "1h", choice(*TIMEFRAMES), "Candle length that is learnt and traded."),
    Option("HISTORY_TARGET_DAYS", 730, integer(30, 4000), "History that is fetched for a symbol."),
    Option("HISTORY_MIN_DAYS", 90, integer(5, 4000), "Least history for a symbol to be learnt."),
    Option("HISTORY_MIN_COVERAGE", 0.95, number(0, 1), "Least share of candles present in the history."),
    Option("EVALUATION_INTERVAL", 300, integer(300, 86_400), "Least seconds between evaluations of a symbol."),
    # --- learning
    Option("TRAINING_MODE", "multi_symbol", choice("multi_symbol", "single_symbol"), "One model, or one a symbol."),
    Option("SYMBOL_ENCODING", "index", choice("index", "one_hot"), "How a multi_symbol model sees the symbol."),
    Option("PRIMARY_SIGNAL", "trend", text, "Primary signal: a name, or a file of one's own (docs/signals.md)."),
    Option("TRAIN_INTERVAL_HOURS", 168.0, number(1, 100_000), "Age at which a model is retrained."),
    Option("MODEL_MAX_AGE_DAYS", 45.0, number(0.1, 100_000), "A model that has seen no newer data opens no trade."),
    Option("TRAIN_MIN_INTERVAL_HOURS", 6.0, number(0.1, 100_000), "Least time between two runs of a scope (I5)."),
    Option("TRAIN_DEBOUNCE_MINUTES", 10.0, number(0, 10_000), "Wait for more new symbols before a run."),
    Option("TRAIN_MAX_ATTEMPTS", 3, integer(1, 20), "Attempts of a run before its symbols are blocked (I4)."),
    Option("TRAIN_TIMEOUT_MINUTES", 60.0, number(0.1, 10_000), "A training without an end is killed after this."),
    Option("TRAIN_LEASE_SECONDS", 60, integer(5, 3600), "Lease of a run; renewed while training makes progress (I6)."),
    Option("TRAIN_SEED", 1, integer(0, 2**31 - 1), "Seed of the training."),
    Option("TRAIN_TREES", 300, integer(5, 10_000), "Most trees of a model."),
    Option(
        "TRAIN_BLEND",
        "none",
        choice("none", "logistic"),
        "What is blended with the trees, in log odds: nothing, or a logistic regression (its share is learnt too).",
    ),
    Option("TRAIN_THREADS", 0, integer(0, 256), "Threads of a training; 0: this host's cores / TRAINING_WORKERS."),
    Option(
        "TRAIN_TUNING_TRIALS",
        0,
        integer(0, 1000),
        "Sets of hyper-parameters that a training tries first, by optuna (requirements-tuning.txt); 0: none.",
    ),
    Option(
        "TRAIN_DASK_SCHEDULER",
        "",
        dask_scheduler,
        "Address of a Dask scheduler whose workers grow the trees of one very large model; empty: this process does.",
    ),
    # --- trading
    Option("BOT_NAME", "main", text, "Name of the bot that runall starts."),
    Option("BOT_INTERVAL", 0.0, number(0, 3600), "Real seconds between passes; 0: 60 s of market time, at least 1 s."),
    Option("BOT_LEASE_SECONDS", 20, integer(10, 600), "Lease of an account (I15)."),
    Option("RISK_MAX_LEVERAGE", 2.0, number(0, 100), "Gross exposure / equity at most."),
    Option(
        "RISK_MAX_CORRELATED", 1.5, number(0, 100), "Exposure / equity at most, what moves together counted as one bet."
    ),
    Option("RISK_MAX_POSITION", 0.2, number(0, 10), "Notional of one position / equity at most."),
    Option("RISK_MAX_POSITIONS", 10, integer(1, 1000), "Open positions at most."),
    Option(
        "RISK_COOLDOWN_BARS",
        4,
        integer(0, MOST_COOLDOWN_BARS),
        "Bars without a new entry in a symbol whose stop was hit.",
    ),
    Option("RISK_DAILY_LOSS", 0.05, number(0, 1), "Loss of a UTC day / equity that stops entries."),
    Option("RISK_MAX_DRAWDOWN", 0.2, number(0, 1), "Loss from the peak / equity that pulls the kill switch."),
    Option("RISK_ON_KILL_SWITCH", "keep", choice("keep", "close"), "What the kill switch does to open positions."),
    Option("RISK_VOLATILITY_TARGET", 0.01, number(0, 1), "Daily standard deviation of a position's profit / equity."),
)
BY_NAME = {option.name: option for option in OPTIONS}
PREFIXES = (
    "BACKUP_", "BOT_", "CANDLE_ARCHIVE", "EVALUATION_", "EXCHANGE", "HISTORY_", "MODEL_", "HOST_CORES", "HOST_MEMORY",
    "LIVE_TRADING", "MARGIN_MODE", "PRIMARY_SIGNAL", "QUEUE_WORKERS", "REPLAY_", "RETENTION_",
    "RISK_", "SIM_", "STORAGE_", "SYMBOL_ENCODING", "TRAIN_", "TRAINING_", "UNIVERSE_",
)  # fmt: skip
RETIRED_HINT = "see `python3 run.py manage options`"


def parse_env_file(path: Path) -> dict[str, str]:
    """Return the `NAME=value` lines of `path`; blank lines and `#` comments are passed over.

    Raises ImproperlyConfigured for any other line.
    """
    values: dict[str, str] = {}
    if not path.exists():
        return values
    for line_number, line in enumerate(path.read_text().splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, separator, value = stripped.partition("=")
        if not separator:
            raise ImproperlyConfigured(
                f"{path}:{line_number}: {stripped!r} is not NAME=value. Mend or delete the line."
            )
        values[name.strip()] = value.strip().strip("\"'")
    return values


def unknown_names(environment: Mapping[str, str], env_file: Mapping[str, str]) -> list[str]:
    """Return names that look like settings of ours but are none: of `.env` all, of the environment our prefixes."""
    known = set(BY_NAME) | {f"{name}_FILE" for name in BY_NAME}
    suspects = set(env_file) | {name for name in environment if name.startswith(PREFIXES)}
    return sorted(suspects - known)


def load_options(*, environment: Mapping[str, str] = os.environ, env_file: Path | None = None) -> dict[str, Any]:
    """Return a value for every option.

    Raises ImproperlyConfigured that lists every wrong setting at once: its name, its value, the rule and the fix.
    """
    from_file = parse_env_file(env_file) if env_file is not None else {}
    problems: list[str] = []
    for name in unknown_names(environment, from_file):
        close = difflib.get_close_matches(name, BY_NAME, n=1)
        hint = f"did you mean {close[0]}?" if close else RETIRED_HINT
        problems.append(f"{name} is not a setting: {hint}")
    values: dict[str, Any] = {}
    for option in OPTIONS:
        if option.late:
            values[option.name] = late_secret(option, environment, from_file, env_file) or option.default
            continue
        raw = environment.get(option.name)
        path = environment.get(f"{option.name}_FILE", from_file.get(f"{option.name}_FILE"))
        if raw is None and path:
            try:
                raw = Path(path).read_text().strip()
            except OSError as error:
                problems.append(
                    f"{option.name}_FILE={path}: cannot be read ({error.strerror}). Mend the path or its rights."
                )
                continue
        if raw is None:
            raw = from_file.get(option.name)
        if raw is None or raw == "":
            values[option.name] = option.default
            continue
        try:
            values[option.name] = option.parse(raw)
        except ValueError as error:
            shown = "***" if option.secret else repr(raw)
            problems.append(f"{option.name}={shown}: {error}. {option.help}")
    if not problems:
        problems += cross_check(values)
    if problems:
        raise ImproperlyConfigured("Settings are wrong:\n  - " + "\n  - ".join(problems))
    return values


def late_secret(
    option: Option, environment: Mapping[str, str], from_file: Mapping[str, str], env_file: Path | None
) -> Secret | None:
    """Return where a secret is, in the order of `load_options`, without reading it; None if it is nowhere."""
    name = option.name
    path = environment.get(f"{name}_FILE", from_file.get(f"{name}_FILE"))
    if environment.get(name):
        return Secret(name, lambda: environment[name].strip())
    if path:
        return Secret(name, lambda: read_private_file(name, Path(path)))
    if env_file is not None and from_file.get(name):

        def read() -> str:
            require_private(name, env_file)
            return parse_env_file(env_file)[name]

        return Secret(name, read)
    return None


def cross_check(values: Mapping[str, Any]) -> list[str]:
    """Return the rules between settings that `values` break."""
    problems: list[str] = []
    if values["EXCHANGE"] == "replay":
        needed = ("CANDLE_ARCHIVE", "EXCHANGE_MARKET", "REPLAY_FROM")
        problems += [
            f"{name} is empty: EXCHANGE=replay needs it. {BY_NAME[name].help}" for name in needed if not values[name]
        ]
        if values["CANDLE_ARCHIVE"] and not Path(values["CANDLE_ARCHIVE"]).is_dir():
            problems.append(
                f"CANDLE_ARCHIVE={values['CANDLE_ARCHIVE']!r}: is not a folder. Give the path of the archive."
            )
    if values["EXCHANGE"] == "paper" and not values["EXCHANGE_MARKET"]:
        problems.append("EXCHANGE_MARKET is empty: EXCHANGE=paper needs a ccxt exchange id like bybit.")
    problems += check_live(values)
    if values["UNIVERSE_MODE"] == "fixed" and not values["UNIVERSE_SYMBOLS"]:
        problems.append("UNIVERSE_SYMBOLS is empty: UNIVERSE_MODE=fixed needs codes like BTC/USDT:USDT.")
    if values["TRAIN_DASK_SCHEDULER"] and values["TRAINING_MODE"] == "single_symbol":
        problems.append(
            f"TRAIN_DASK_SCHEDULER={values['TRAIN_DASK_SCHEDULER']!r}: is for one large model; "
            "leave it empty with TRAINING_MODE=single_symbol, whose runs spread over the workers by themselves."
        )
    if values["TRAIN_DASK_SCHEDULER"] and values["TRAIN_TUNING_TRIALS"]:
        problems.append(
            f"TRAIN_TUNING_TRIALS={values['TRAIN_TUNING_TRIALS']}: must be 0 with TRAIN_DASK_SCHEDULER, whose trees "
            "differ between clusters (a search would not be repeatable) and go on growing when a trial is cut off."
        )
    if values["MODEL_MAX_AGE_DAYS"] * 24 < values["TRAIN_INTERVAL_HOURS"]:
        problems.append(
            f"MODEL_MAX_AGE_DAYS={values['MODEL_MAX_AGE_DAYS']:g}: a model would expire before it is retrained after "
            f"TRAIN_INTERVAL_HOURS={values['TRAIN_INTERVAL_HOURS']:g}. Raise the first or lower the second."
        )
    if values["HISTORY_MIN_DAYS"] > values["HISTORY_TARGET_DAYS"]:
        problems.append(
            f"HISTORY_MIN_DAYS={values['HISTORY_MIN_DAYS']}: must be at most "
            f"HISTORY_TARGET_DAYS={values['HISTORY_TARGET_DAYS']}, else no symbol is ever long enough."
        )
    return problems


def check_live(values: Mapping[str, Any]) -> list[str]:
    """Return the rules of real accounts that `values` break. Nobody gets to one by a single setting."""
    problems: list[str] = []
    if values["EXCHANGE"] == "live":
        if not values["EXCHANGE_MARKET"]:
            problems.append("EXCHANGE_MARKET is empty: EXCHANGE=live needs the exchange, bybit.")
        if values["LIVE_TRADING_CONFIRM"] != values["BOT_NAME"]:
            problems.append(
                f"LIVE_TRADING_CONFIRM={values['LIVE_TRADING_CONFIRM']!r}: EXCHANGE=live sends real orders. "
                f"If you want that, set LIVE_TRADING_CONFIRM={values['BOT_NAME']}, the name of the bot (BOT_NAME)."
            )
    problems += [
        f"{name}={values[name]!r}: is only for EXCHANGE=paper and EXCHANGE=live; leave it out."
        for name in ("EXCHANGE_SANDBOX", "EXCHANGE_URL")
        if values[name] and values["EXCHANGE"] not in ("paper", "live")
    ]
    if values["EXCHANGE_SANDBOX"] and values["EXCHANGE_URL"]:
        problems.append("EXCHANGE_URL and EXCHANGE_SANDBOX name two exchanges: leave one of them out.")
    return problems
