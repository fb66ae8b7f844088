"""The page's server: on this machine's loopback alone, and for nobody but the page that it served.

A request has to carry the random token in its path, this server's own name as `Host`, and, where it asks for anything
to be done, this server's own `Origin`: no other site that is open in the browser can send such a request. A body is
small, and a connection is short and carries one request (HTTP/1.0). Everything else is refused, and the page goes on.
"""

import json
import secrets
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dpo_min.labels.desk import Refused

PAGE = Path(__file__).with_name("page.html")
MOST = 4096  # bytes of a body; what the page sends has a few hundred
SILENCE, DEADLINE = 10, 30  # seconds of waiting for a byte, and for the whole of a request
ASKS = {  # what the page can ask for → the arguments beside the window, and of which type they are
    "next": {},
    "choose": {"showing": str, "choice": str, "before": (str, type(None))},
    "undo": {},
    "look": {"place": int},
    "stay": {},
    "leave": {},
}
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Handler(BaseHTTPRequestHandler):
    """One request, one connection."""

    timeout = SILENCE
    server_version, sys_version = "dpo_min", ""

    def setup(self):
        """Begin, with an end: whoever sends a byte now and then is cut off at the deadline."""
        super().setup()
        self.deadline = threading.Timer(DEADLINE, cut, [self.connection])
        self.deadline.daemon = True
        self.deadline.start()

    def finish(self):
        """End."""
        self.deadline.cancel()
        with suppress(OSError):
            super().finish()

    def do_GET(self):
        """The page."""
        if self.allowed(asks=False):
            if self.path != f"/{self.server.token}/":
                return self.answer(404, "there is only the page here")
            nonce = secrets.token_urlsafe(16)
            text = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
            more = {"Content-Security-Policy": POLICY.format(nonce)}
            return self.answer(200, text, "text/html; charset=utf-8", more)
        return None

    def do_POST(self):
        """What the page asks for."""
        if not self.allowed(asks=True):
            return None
        length, ask = self.headers.get("Content-Length", ""), self.path.rpartition("/")[2]
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()):
            return self.answer(411, "the length of the body is missing")
        if len(length) > 12 or int(length) > MOST:
            return self.answer(413, f"a body has at most {MOST} bytes")
        if self.path != f"/{self.server.token}/{ask}" or ask not in ASKS:
            return self.answer(404, "there is no such thing to ask for")
        body = self.rfile.read(int(length))
        try:
            said = json.loads(body)
            wanted = {"window": str} | ASKS[ask]
            if not isinstance(said, dict) or said.keys() != wanted.keys():
                raise ValueError(f"expected {', '.join(wanted)}")
            if any(not isinstance(said[name], kind) or isinstance(said[name], bool) for name, kind in wanted.items()):
                raise ValueError("a value of another type was expected")
        except (ValueError, RecursionError) as error:
            return self.answer(400, str(error)[:200])
        try:
            return self.answer(200, self.server.do(ask, said))
        except Refused as error:
            return self.answer(409, str(error))
        except OSError as error:  # the disk is full, or gone
            return self.answer(507, f"not saved: {error.strerror or error}")

    def allowed(self, asks):
        """Whether the request can be from our own page; if not, it is answered with the reason."""
        hosts = [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]
        origins = [f"http://{host}" for host in hosts] + ([] if asks else [None])
        token = self.path.encode().split(b"/")[1:2] or [b""]
        for right, why in (
            (self.headers.get_all("Host") in [[host] for host in hosts], "it is sent to another host"),
            (self.headers.get("Origin") in origins, "it comes from another origin"),
            (secrets.compare_digest(token[0], self.server.token.encode()), "its address is not the printed one"),
        ):
            if not right:
                self.answer(403, why)
                return False
        return True

    def answer(self, status, content, kind="application/json", more=None):
        """Send a text, a value as JSON, or the reason of a refusal; what is still being sent is thrown away."""
        text = content if kind != "application/json" else json.dumps({"error": content} if status != 200 else content)
        body = text.encode()
        with suppress(OSError):
            self.send_response(status)
            for name, value in ({"Content-Type": kind, "Content-Length": len(body)} | HEADERS | (more or {})).items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)
            if status != 200:  # a connection that is closed on unread bytes loses the answer
                self.connection.settimeout(1)
                self.connection.shutdown(socket.SHUT_WR)
                while self.connection.recv(2**16):
                    pass

    def log_message(self, *about):
        """Nothing: the terminal is for what the person needs to know."""


def cut(connection):
    """End a connection, whatever it is waiting for."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """The server of one `Desk`; `url` is the page's address."""

    daemon_threads, request_queue_size = True, 64

    def __init__(self, desk, port=0):
        """Port 0: a free one. OSError where the port is taken."""
        self.desk, self.lock, self.token = desk, threading.Lock(), secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def do(self, ask, said):
        """One thing at a time."""
        with self.lock:
            return getattr(self.desk, ask)(**said)

    def handle_error(self, request, client):
        """Nothing, where a client went away; anything else is a mistake of ours, and shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client)
