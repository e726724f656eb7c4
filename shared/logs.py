"""Structured logs: one JSON line an event, named `room.verb_past`, as an ELK stack takes it.

Fields follow the Elastic Common Schema where it has a word: `@timestamp`, `log.level`, `message`
(the event's name), `service.name`; ours stay flat (`job_id`, `device_id`).
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


def _common_schema(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["log.level"] = event.pop("level", "info")
    event["message"] = event.pop("event", "")
    return event


def set_up_logs(service: str, *, level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` (stderr) as JSON.

    `service` goes into each line as `service.name`. Libraries' own logs take the same way, from
    warnings up.
    """
    out = stream or sys.stderr
    number = _LEVELS[level.lower()]

    def named(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service.name"] = service
        return event

    shared_steps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="@timestamp"),
        structlog.processors.format_exc_info,
        named,
        _common_schema,
    ]
    structlog.configure(
        processors=[*shared_steps, structlog.processors.JSONRenderer(ensure_ascii=False)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared_steps[:4], structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                named,
                _common_schema,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


def get_log(room: str) -> FilteringBoundLogger:
    """The logger of one room; `room` goes into each line as `log.logger`."""
    # Not bind(): that would freeze the set-up as it is at import, before `set_up_logs`.
    log: FilteringBoundLogger = structlog.get_logger(**{"log.logger": room})
    return log
