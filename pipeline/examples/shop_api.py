"""A small shop with an HTTP API, to ingest from: `python -m pipeline.examples.shop_api`.

It has orders of March 2024 in pages that lead to each other, wants a token, and sometimes asks to
come back later. It writes its address to shop.url, its process id to shop.pid, and ends by itself
after ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

TOKEN = "demo"
PAGE = 50
SECONDS = 600.0
"""Seconds after which it ends."""
ORDERS = [
    {
        "id": number,
        "day": (date(2024, 3, 1) + timedelta(days=number % 31)).isoformat(),
        "country": ("DE", "FR", "IT")[number % 3],
        "total": f"{number % 97}.{number % 100:02d}",
        "items": [{"sku": f"A{number % 7}", "count": number % 4 + 1}],
        "coupon": None if number % 5 else {"code": "SPRING", "percent": 10},
    }
    for number in range(1000)
]


class Shop(BaseHTTPRequestHandler):
    """Answers GET /api/orders?since=2024-03-01&until=2024-04-01&after=50."""

    asked = 0

    def do_GET(self) -> None:
        """Answer with a page."""
        type(self).asked += 1
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "a token is needed"})
        if type(self).asked % 10 == 0:
            return self._send(429, {"error": "too many requests"}, {"Retry-After": "0"})
        params = dict(parse_qsl(urlsplit(self.path).query))
        since, until = params.get("since", ""), params.get("until", "9999")
        orders = [order for order in ORDERS if since <= str(order["day"]) < until]
        start = int(params.get("after", "0"))
        end = start + PAGE
        following = str(end) if end < len(orders) else None
        return self._send(200, {"data": orders[start:end], "meta": {"next": following}})

    def log_message(self, *_: object) -> None:
        """Write no line per request."""

    def _send(self, status: int, document: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve on this machine only."""
    parser = argparse.ArgumentParser(description="A small shop with an HTTP API.")
    parser.add_argument("--port", type=int, default=0, help="Port; default a free one.")
    with ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Shop) as server:
        Path("shop.pid").write_text(f"{os.getpid()}\n", "utf-8")
        Path("shop.url").write_text(f"http://127.0.0.1:{server.server_port}/api/orders\n", "utf-8")
        timer = threading.Timer(SECONDS, server.shutdown)
        timer.daemon = True
        timer.start()
        server.serve_forever(0.1)


if __name__ == "__main__":
    main()
