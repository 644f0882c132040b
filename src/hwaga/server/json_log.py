"""The log of the server's processes, as JSON: one record a line, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered, where one is."""


_FIELDS = ("request_id", "method", "path", "status", "ms", "job", "attempt", "seconds", "error", "prompt")


class JsonLines(logging.Formatter):
    """Log records as JSON, one a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        answered = request_id.get()
        line |= {} if answered is None else {"request_id": answered}
        return json.dumps(line | {name: vars(record)[name] for name in _FIELDS if name in vars(record)})


def log_as_json(level: int) -> None:
    """Has all that this process logs from that level on written so."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler])
