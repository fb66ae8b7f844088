"""A real server process of the labels' page, and requests to it, for the tests, the browser and the torture."""

import http.client
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]


def write_candidates(path, count, answers=lambda i: [f"left {i}", f"right {i}"]):
    """A file of so many prompts with their answers."""
    rows = ({"prompt": f"prompt {i}", "answers": answers(i), "logps": [-1.0] * len(answers(i))} for i in range(count))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


class Served:
    """A server that runs, and its page's address."""

    def __init__(self, candidates, out, *flags):
        command = [sys.executable, "-m", "dpo_min.labels", str(candidates), "--out", str(out), *map(str, flags)]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("open http"):
                break
        else:
            raise AssertionError(self.process.communicate())
        self.url = self.said[-1].split()[1]
        self.parts = urlsplit(self.url)
        self.origin = f"http://{self.parts.netloc}"

    def request(self, method="POST", path=None, body=b"", timeout=20, **headers):
        """(status, headers, body) of one request; `headers` replace the right ones, and None takes one out."""
        connection = http.client.HTTPConnection(self.parts.hostname, self.parts.port, timeout=timeout)
        connection.putrequest(method, self.parts.path if path is None else path, skip_host=True)
        right = {"Host": self.parts.netloc, "Origin": self.origin, "Content-Length": str(len(body))}
        for name, value in (right | {name.replace("_", "-"): value for name, value in headers.items()}).items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders()
        connection.send(body)
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def ask(self, what, window="w", **more):
        """What the server says to the page's question; AssertionError with the reason where it refuses."""
        body = json.dumps({"window": window, **more}).encode()
        status, _, content = self.request(path=self.parts.path + what, body=body)
        assert status == 200, (status, content)
        return json.loads(content)

    def choose(self, pair, choice, window="w"):
        """Choose of a pair that was shown; returns what comes next."""
        more = {"showing": pair["showing"], "choice": choice, "before": pair["choice"]}
        return self.ask("choose", window, **more)

    def kill(self):
        """SIGKILL."""
        self.end(signal.SIGKILL)

    def end(self, number=signal.SIGINT):
        """End it by a signal; returns the rest of what it said, on both streams, and its exit code."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return out, err, self.process.returncode


@contextmanager
def serving(*arguments):
    """A `Served` that ends with the block."""
    served = Served(*arguments)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.kill()


def rows_of(path):
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
