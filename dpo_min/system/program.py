"""How a program begins and ends: on steady streams, and with one line on standard error for whatever goes wrong."""

import atexit
import errno
import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from dpo_min.system.launcher import first_to_fail, program_name
from dpo_min.system.streams import OutputLost, steady
from dpo_min.system.text import Lines, one_line

OUT_OF = {errno.EAGAIN: "no more processes may be started here (see ulimit -u)", errno.ENOMEM: "out of memory"}


def run(main, *arguments):
    """Be a program: standard streams, `main`, and the exit code that it returns."""
    steady()
    collect_nothing_at_exit()
    sys.exit(guard(main, *arguments))


def collect_nothing_at_exit():
    """Python ends by looking for garbage among all objects, most of a second for PyTorch's; the system takes them."""
    atexit.register(gc.freeze)


def stop(message, code=2):
    """End the program: the message on standard error, after the program's name, in one line where it is not `Lines`."""
    if first_to_fail():
        lines = str(message).split("\n") if isinstance(message, Lines) else [message]
        print(f"{program_name()}: error:", "\n".join(map(one_line, lines)), file=sys.stderr)
    sys.exit(code)


@contextmanager
def mistakes():
    """What is read or checked meanwhile may be a mistake of the user's: a ValueError ends the program with its line."""
    try:
        yield
    except ValueError as error:
        stop(error)


@contextmanager
def beside(work, *arguments):
    """Work in a thread of its own while the body of a `with` lasts; then wait for it. Its failure is its own."""
    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(work, *arguments)
        except RuntimeError as error:  # the system allows no more threads
            print(f"left out: {work.__name__} ({error})")
        yield


def guard(program, *arguments):
    """Run a program's main function; what can go wrong in the middle of it becomes one line, exit code 1 or 130.

    Where one of several processes fails, the others fail in turn, because it no longer answers: they are silent.
    """
    gc.enable()
    try:
        try:
            return program(*arguments)
        finally:
            sys.stdout.flush()  # what is lost is lost here, and not in Python's own end
    except OutputLost as lost:
        if isinstance(lost.__cause__, BrokenPipeError):  # nobody reads any more what is printed
            sys.exit(141)
        stop(f"standard output: {reason(lost.__cause__)}", code=1)
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        again = "start the program again (train.py: with --resume)"
        stop(f"the disk is full: {error}; free some space, and {again}" if full else reason(error), code=1)
    except FloatingPointError as error:
        stop(error, code=1)
    except KeyboardInterrupt:
        stop("stopped at once, by Ctrl-C", code=130)
    except Exception as error:
        if trouble := known(error):
            stop(trouble, code=1)
        if not first_to_fail():
            sys.exit(1)
        raise  # nobody foresaw it


def reason(error):
    """What an OSError says."""
    return f"{OUT_OF[error.errno]}: {error}" if getattr(error, "errno", None) in OUT_OF else error


def known(error):
    """What is said of an exception that is no mistake of the program's: memory, threads or a compiler ran out."""
    text = str(error).partition("\n")[0]
    if no_memory(error):
        asked = sys.argv[0].endswith("sample.py")
        lower = "--num-samples, --num-beams or --pairs" if asked else "--micro-batch-size or --max-length"
        return f"out of memory: lower {lower} ({text[:200] or 'nothing is left'})"
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return OUT_OF[errno.EAGAIN]
    if any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__):
        return f"--compile: {text}; a C++ compiler is needed, or leave --compile out"
    return None


def no_memory(error):
    """Whether an exception says that memory ran out: Python's, or PyTorch's, which is known by its words."""
    words = "allocate", "not enough memory"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
