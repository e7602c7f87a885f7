"""Settings of the whole project: works with no environment at all, on SQLite and the simulated exchange."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from django.urls import reverse_lazy

from marketdata.places import BucketAddress, parse_storage_url
from tradingsite import signal_files
from tradingsite.logs import logging_config
from tradingsite.options import load_options

BASE_DIR = Path(__file__).resolve().parent.parent
TESTING = "pytest" in sys.modules
OPTIONS = load_options(env_file=None if TESTING else BASE_DIR / ".env")
globals().update(OPTIONS)
PRIMARY_SIGNAL = signal_files.resolve(OPTIONS["PRIMARY_SIGNAL"], folder=BASE_DIR)

DATA_DIR = (BASE_DIR / OPTIONS["DATA_DIR"]).resolve()
DATA_DIR.mkdir(parents=True, exist_ok=True)
# Candles and artifacts: in DATA_DIR, in a folder that several hosts share, or in a bucket (then STORAGE_BUCKET is set).
_STORAGE = parse_storage_url(OPTIONS["STORAGE_URL"])
STORAGE_BUCKET = _STORAGE if isinstance(_STORAGE, BucketAddress) else None
_SHARED_DIR = _STORAGE if isinstance(_STORAGE, Path) else DATA_DIR
CANDLES_DIR = _SHARED_DIR / "candles"
ARTIFACTS_DIR = _SHARED_DIR / "artifacts"
LEDGER_DIR = DATA_DIR / "ledger"


def private_secret(path: Path) -> str:
    """Return the secret kept in `path`, made at the first call; only the owner may read it."""
    if not path.exists():
        descriptor = os.open(path.with_suffix(f".{os.getpid()}"), os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(50))
        try:
            os.link(path.with_suffix(f".{os.getpid()}"), path)  # the first of several processes wins
        except FileExistsError:
            pass
        finally:
            path.with_suffix(f".{os.getpid()}").unlink()
    return path.read_text()


SECRET_KEY = OPTIONS["SECRET_KEY"] or private_secret(DATA_DIR / "secret_key")
DEBUG = OPTIONS["DEBUG"]
ALLOWED_HOSTS = list(OPTIONS["ALLOWED_HOSTS"])
CSRF_TRUSTED_ORIGINS = list(OPTIONS["CSRF_TRUSTED_ORIGINS"])

INSTALLED_APPS = [
    "unfold.apps.BasicAppConfig",
    "unfold.contrib.filters",
    "unfold.contrib.simple_history",
    "tradingsite.apps.TradingAdminConfig",  # django.contrib.admin, with our site
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "axes",
    "django_filters",
    "django_htmx",
    "django_q",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "rest_framework",
    "rest_framework.authtoken",
    "simple_history",
    "ops_app",
    "coverage_app",
    "training_app",
    "trading_app",
    "tradingsite",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "tradingsite.content_security.ContentSecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "simple_history.middleware.HistoryRequestMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "tradingsite.urls"
WSGI_APPLICATION = "tradingsite.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "tradingsite.context.site",
            ]
        },
    }
]

# --- database -------------------------------------------------------------------------------------------------------
# WAL + IMMEDIATE + a time-out: 0 of 1,045 writes of four processes failed; with Django's defaults 88 of 237 (stack.md).
SQLITE_OPTIONS = {
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
    "init_command": (
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-16000; "
        "PRAGMA mmap_size=134217728; PRAGMA journal_size_limit=27103364;"
    ),
}


def database() -> dict[str, Any]:
    """Return the one database: PostgreSQL by DATABASE_URL, else SQLite in DATA_DIR."""
    if OPTIONS["DATABASE_URL"]:
        try:
            config = environ.Env.db_url_config(OPTIONS["DATABASE_URL"])
        except (KeyError, ValueError) as error:
            raise ImproperlyConfigured(
                "DATABASE_URL cannot be read: write postgres://user:password@host:5432/name"
            ) from error
        if "postgresql" not in config["ENGINE"]:
            raise ImproperlyConfigured(
                f"DATABASE_URL names {config['ENGINE']}: only PostgreSQL is supported; leave it empty for SQLite."
            )
        # A process frozen inside a transaction is cut off, so that it cannot block the others for ever (locks.md).
        # A process that is cut off from the database notices within 30 s, and not when TCP gives up after 15 minutes.
        config["OPTIONS"] = {
            "options": "-c lock_timeout=5s -c idle_in_transaction_session_timeout=30s",
            "connect_timeout": 10,
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,  # milliseconds
        }
        config["CONN_HEALTH_CHECKS"] = True
        config["CONN_MAX_AGE"] = 60
        return dict(config)
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": DATA_DIR / "db.sqlite3", "OPTIONS": SQLITE_OPTIONS}


DATABASES = {"default": database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- queue: a doorbell; our rows decide. The hardened runner `manage.py qworker` reads the same settings. -----------
#: A worker that is cut off from Redis notices, instead of waiting for a message for ever. The URL may say otherwise.
REDIS_PATIENCE = {
    "socket_timeout": "10",
    "socket_connect_timeout": "5",
    "socket_keepalive": "True",
    "health_check_interval": "30",
}


def redis_address(url: str) -> str:
    """Return the URL with time-outs for what it leaves open; a socket of this machine needs none."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return url
    return parts._replace(query=urlencode(REDIS_PATIENCE | dict(parse_qsl(parts.query)))).geturl()


_BROKER: dict[str, Any] = {"redis": redis_address(OPTIONS["REDIS_URL"])} if OPTIONS["REDIS_URL"] else {"orm": "default"}
LIGHT_QUEUE, TRAINING_QUEUE = "light", "training"
Q_CLUSTER = {
    **_BROKER,
    "name": LIGHT_QUEUE,
    "workers": OPTIONS["QUEUE_WORKERS"],
    "timeout": 900,
    "retry": 5400,  # > timeout * (2 + ceil((queue_limit + bulk - 1) / workers)), see ops_app.checks
    "max_attempts": 1,
    "ack_failures": True,
    "bulk": 1,
    "queue_limit": 2,
    "poll": 0.5,
    "guard_cycle": 0.5,
    "catch_up": False,
    "save_limit": 0,
    "recycle": 200,
    "max_rss": 900_000,
    "time_zone": "UTC",
    "ALT_CLUSTERS": {
        TRAINING_QUEUE: {
            "workers": OPTIONS["TRAINING_WORKERS"],
            "timeout": int(OPTIONS["TRAIN_TIMEOUT_MINUTES"] * 60) + 120,
            "retry": (int(OPTIONS["TRAIN_TIMEOUT_MINUTES"] * 60) + 120) * 4,
            "queue_limit": 1,
            "bulk": 1,
            "recycle": 20,
            "scheduler": False,
        }
    },
}

# --- people ---------------------------------------------------------------------------------------------------------
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = 1  # hour
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_LOCKOUT_CALLABLE = "tradingsite.lockout.respond"
AXES_VERBOSE = False
LOGIN_URL = reverse_lazy("admin:login")
LOGIN_REDIRECT_URL = reverse_lazy("dashboard")
SESSION_COOKIE_AGE = 14 * 24 * 3600

HTTPS = OPTIONS["HTTPS"]
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

# --- pages ----------------------------------------------------------------------------------------------------------
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
STATIC_ROOT.mkdir(exist_ok=True)  # whitenoise warns about a missing folder
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG or TESTING

STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},  # nothing is uploaded
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "artifacts": {"BACKEND": "training_app.storage.FolderStorage"}
    if STORAGE_BUCKET is None
    else {"BACKEND": "training_app.storage.BucketStorage", "OPTIONS": {"address": STORAGE_BUCKET / "artifacts"}},
}

UNFOLD = {
    "SITE_TITLE": "Trading bot",
    "SITE_HEADER": "Trading bot",
    "SITE_SYMBOL": "candlestick_chart",
    "SITE_URL": reverse_lazy("dashboard"),
    "SHOW_HISTORY": True,
    "ENVIRONMENT": "tradingsite.context.environment_badge",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("site/icon.svg")}  # noqa: ARG005 - unfold's
    ],
    "STYLES": [lambda request: static("site/admin.css")],  # noqa: ARG005 - unfold's
}
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "rest_framework.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["tradingsite.permissions.RolePermission"],
    "DEFAULT_PAGINATION_CLASS": "tradingsite.api.pagination.Pagination",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "tradingsite.api.schema.AutoSchema",
    "EXCEPTION_HANDLER": "tradingsite.api.problems.exception_handler",
    "DEFAULT_THROTTLE_RATES": {"login": "10/min"},
    "PAGE_SIZE": 100,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Trading bot",
    "DESCRIPTION": "Status and steering of the trading bot. Times are UTC; market time may be simulated or replayed.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["tradingsite.permissions.RolePermission"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "ENUM_NAME_OVERRIDES": {
        "ActivationStateEnum": "training_app.choices.ActivationState",
        "AlertStateEnum": "ops_app.choices.AlertState",
        "DesiredStateEnum": "trading_app.choices.DesiredState",
        "OrderStateEnum": "trading_app.choices.OrderState",
        "RefreshTriggerEnum": "coverage_app.choices.RefreshTrigger",
        "RunStateEnum": "training_app.choices.RunState",
        "RunTriggerEnum": "training_app.choices.RunTrigger",
        "VerdictEnum": "training_app.choices.Verdict",
        "WatchVerdictEnum": "training_app.choices.WatchVerdict",
    },
}

# --- what the market is ---------------------------------------------------------------------------------------------
EXCHANGE_MARKET = OPTIONS["EXCHANGE_MARKET"] or OPTIONS["EXCHANGE"]
CANDLE_ARCHIVE = Path(OPTIONS["CANDLE_ARCHIVE"]).resolve() if OPTIONS["CANDLE_ARCHIVE"] else None

LOGGING_CONFIG = None
logging_config(level=OPTIONS["LOG_LEVEL"], style=OPTIONS["LOG_FORMAT"])
