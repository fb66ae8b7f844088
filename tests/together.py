"""Run the tests in as many processes as there are cores, at most four, and add up what they say.

    python tests/together.py [arguments of pytest]

Each process collects all tests; conftest.py gives every file to the process that comes to it first.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from threading import Thread

CLOSING = re.compile(r"\d+ \w+ in \d+\.\d+s")  # "4 passed, 1 skipped in 2.34s"


def cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def listen(process, heard, aloud):
    """Keep what a process says, a character at a time where it is shown at once."""
    for text in iter(lambda: process.stdout.read(1 if aloud else 4096), ""):
        heard.append(text)
        if aloud:
            print(text, end="", flush=True)


def added_up(texts):
    """Outcome → number, over the closing lines of pytest's outputs; the end of a process may say more after it."""
    counts = Counter()
    for text in texts:
        for line in [line for line in text.splitlines() if CLOSING.search(line)][-1:]:
            counts.update({word: int(number) for number, word in re.findall(r"(\d+) (\w+)(?=,| in )", line)})
    return counts


def main():
    """The exit code of the tests: the worst of all processes; 5, no test, only where all say so."""
    start, outputs = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as claims:
        processes, threads = [], []
        for k in range(min(4, cores())):
            command = [sys.executable, "-m", "pytest", "-q", *sys.argv[1:]]
            environment = os.environ | {"CLAIMS": claims, "TURN": str(k)}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
            processes.append(subprocess.Popen(command, env=environment, errors="replace", **pipes))
            outputs.append([])
            threads.append(Thread(target=listen, args=(processes[-1], outputs[-1], k == 0)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        codes = [process.wait() for process in processes]
    texts = ["".join(output) for output in outputs]
    print("".join(texts[1:]), end="")
    seconds = time.perf_counter() - start
    print(", ".join(f"{number} {word}" for word, number in added_up(texts).items()), f"in {seconds:.2f}s")
    return max((code for code in codes if code != 5), default=5)


if __name__ == "__main__":
    sys.exit(main())
