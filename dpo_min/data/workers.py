"""A function over many items, in their order, by several processes, none of which imports PyTorch.

Not `multiprocessing`'s: a process that it spawns would import train.py, and PyTorch with it. Where the machine has no
more processes to give, fewer do the work, at last this one alone.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress

# "" on the path is the working directory; PYTHONPATH could not hold a directory with a colon.
START = "import sys; sys.path[:] = sys.argv[1:]; from dpo_min.data.workers import serve; serve()"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
GONE = BrokenPipeError, EOFError, pickle.UnpicklingError


class WorkerDied(OSError):
    """A process ended in the middle of its work."""


def spread(function, items, settings, workers):
    """Yield function(item, **settings) of each item, in order, by so many processes with one item each; 0: in this one.

    Raises:
        WorkerDied: a process ended too early.
    """
    started, busy = [], deque()
    try:
        with suppress(OSError):  # no more of them
            for _ in range(workers):
                started.append(Worker())
        pool = [worker for worker in started if worker.survives(worker.send, (function, settings))]
        pool = [worker for worker in pool if worker.survives(worker.receive)]
        if not pool:
            yield from (function(item, **settings) for item in items)
            return
        idle = [*pool]
        for item in items:
            done = []
            if not idle:
                idle.append(busy.popleft())
                done = [idle[0].receive()]
            busy.append(idle.pop())
            busy[-1].send(item)
            yield from done
        yield from (worker.receive() for worker in busy)
    except GONE as error:
        raise WorkerDied("a process that tokenized the data ended too early; was it out of memory?") from error
    finally:
        for worker in started:
            worker.close()


class Worker:
    """A process that turns items into what a function makes of them."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, *map(os.path.abspath, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        )

    def survives(self, action, *arguments):
        """Whether it is still there after something that it was to do at its beginning."""
        with suppress(*GONE):
            action(*arguments)
            return True
        return False

    def send(self, message):
        """Hand over an item, one at a time."""
        pickle.dump(message, self.process.stdin, protocol=5)
        self.process.stdin.flush()

    def receive(self):
        """The answer to the item that was sent last."""
        return pickle.load(self.process.stdout)

    def close(self):
        """End the process, whatever it is doing."""
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve():
    """A worker's life: a function and its settings, then items until there are no more, or nobody is there."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # when the parent is gone, go without a word

    def take():
        try:
            return pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):  # at an item's end, or in the middle of it
            os._exit(0)

    def give(answer):
        pickle.dump(answer, sys.stdout.buffer, protocol=5)
        sys.stdout.buffer.flush()

    function, settings = take()
    give(True)
    while True:
        give(function(take(), **settings))


def default_workers(items):
    """One worker a usable core, none for the only core, and no more than there are items to work on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, items) if cores > 1 else 0
