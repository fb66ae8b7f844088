"""How a program ends: whatever goes wrong is one line on standard error, and an exit code."""

import errno
import os
import sys
from pathlib import Path

from dpo_min.system.launcher import first_to_fail


def stop(message, code=2):
    """End the program: the message on standard error, one line after the program's name."""
    if first_to_fail():
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(code)


def guard(program, *arguments):
    """Run a program's main function; what can go wrong in the middle of it becomes one line, exit code 1 or 130.

    Where one of several processes fails, the others fail in turn, because it no longer answers: they are silent.
    """
    try:
        return program(*arguments)
    except BrokenPipeError:  # nobody reads any more what is printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        stop(f"the disk is full: {error}; free some space, and --resume goes on" if full else error, code=1)
    except FloatingPointError as error:
        stop(error, code=1)
    except KeyboardInterrupt:
        stop("stopped at once, by Ctrl-C", code=130)
    except Exception as error:
        if no_memory(error):
            text = str(error).splitlines()[0][:200] if str(error) else "nothing is left"
            stop(f"out of memory: lower --micro-batch-size or --max-length ({text})", code=1)
        if not first_to_fail():
            sys.exit(1)
        raise  # nobody foresaw it


def no_memory(error):
    """Whether an exception says that memory ran out: Python's, or PyTorch's, which is known by its words."""
    words = "allocate", "not enough memory"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
