"""Log lines: structlog over the standard library, for a person (console) or a machine (JSON)."""

from __future__ import annotations

import logging.config

import structlog


def logging_config(*, level: str, style: str) -> None:
    """Configure the standard library's logging and structlog; `style` is `console` or `json`."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Plain tracebacks: the default formatter takes more than a second for each, and prints local variables (secrets).
    console = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    last: structlog.types.Processor = structlog.processors.JSONRenderer() if style == "json" else console
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "structlog": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "processors": [
                        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                        *([structlog.processors.format_exc_info] if style == "json" else []),
                        last,
                    ],
                    "foreign_pre_chain": shared,
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structlog"}},
            "root": {"handlers": ["stderr"], "level": level.upper()},
            # numba tells of every instruction that it compiles.
            "loggers": {
                "django.db.backends": {"level": "INFO"},
                "axes": {"level": "WARNING"},
                "numba": {"level": "WARNING"},
            },
        }
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
