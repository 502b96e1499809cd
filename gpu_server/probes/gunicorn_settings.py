"""What Gunicorn makes of its options, variables and configuration file, without starting anything."""

from __future__ import annotations

import json
import sys
from typing import Any

SHOWN = ("timeout", "graceful_timeout", "threads", "workers", "keepalive", "preload_app", "reuse_port")


def main() -> None:
    """Answer the settings that matter to this project; a wrong option ends it as it ends Gunicorn."""
    given = json.loads(sys.stdin.read())
    sys.argv = ["gunicorn", *given["options"]]
    from gunicorn.app.wsgiapp import WSGIApplication

    app = WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
    facts: dict[str, Any] = {name: getattr(app.cfg, name) for name in SHOWN}
    facts["app"] = app.app_uri or ""
    facts["worker_class"] = app.cfg.worker_class_str
    facts["guarded"] = app.cfg.post_fork.__module__ == "web.serving"
    facts |= _web_settings()
    print(json.dumps(facts))  # noqa: T201


def _web_settings() -> dict[str, Any]:
    from gpu_server.variables import WEB_PREFIX, unread
    from web.settings import VARIABLES, Settings

    settings = Settings.from_env()
    lines = [line for line in unread(web=VARIABLES) if line.startswith(WEB_PREFIX)]
    return {"web_timeout_s": settings.timeout_s, "guard": settings.torch_guard, "unread": lines}


if __name__ == "__main__":
    main()
