"""The run directory, and what else of a run is not mathematics: device, metrics, progress, checkpoint, signals."""

import ctypes
import errno
import importlib
import json
import os
import platform
import signal
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from dpo_min import checkpoint, distributed, options, resume
from dpo_min.files import write_atomically
from dpo_min.options import first_to_fail, processes, stop
from dpo_min.weights import save_model

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def choose_device(device, dtype):
    """(device, autocast dtype) for the values of --device and --dtype.

    Raises:
        ValueError: the machine does not have the device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if processes() > 1:
        del there["mps"]  # it has nothing to talk to other processes with
    if device == "auto":
        device = next(name for name in there if there[name])
    if not there[device]:
        names = ", ".join(name for name in there if there[name])
        raise ValueError(f"--device {device} is not there; this machine has {names}")
    if dtype == "auto":
        return device, torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return device, getattr(torch, dtype)


def keep_heap():
    """Tell glibc to keep large freed blocks for the next step: giving them back costs a zero fill a step.

    Linux's C library only; elsewhere nothing happens.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 2**31 - 1)


@contextmanager
def opened(config, settings):
    """The run directory, locked while the context lasts, with its config.json; of a resumed run it is compared first.

    Args: settings, name → value: everything that determines the run, as config.json has it.

    Of several processes the first does it; the others wait.

    Raises:
        ValueError: the directory cannot be made, another run is writing in it, or its run began with other settings.
    """
    lock = nullcontext()
    if distributed.rank() == 0:
        try:
            config.out.mkdir(parents=True, exist_ok=True)
            lock = options.hold(config.out)
        except OSError as error:
            raise ValueError(f"--out {config.out}: {error.strerror}") from error
    with lock:
        if distributed.rank() == 0:
            enter(config, settings)
        distributed.barrier()
        yield


def enter(config, settings):
    """`opened` in the first process, which holds the lock."""
    options.check_out(config.out, config.resume, held=True)  # another may have come and gone since it was checked
    if config.resume:
        before = resume.read_run(config.out)
        taken = max(map(checkpoint.number, checkpoint.found(config.out / "checkpoint")), default=0)
        if taken > settings["steps"]:
            raise ValueError(f"--resume: the run has taken {taken} steps, more than {settings['steps']}")
        for note in resume.compare(before, settings):
            print(f"resume: {note}")
        settings = before | settings
    else:
        for name in options.RUN_FILES[:2]:  # of a run that stopped before it saved anything
            (config.out / name).unlink(missing_ok=True)
    for left in config.out.rglob("*.partial"):  # files that were being written when the run was killed
        if left.is_file():
            left.unlink(missing_ok=True)
    resume.write_run(config.out, settings)


def note_reference(directory, fingerprint):
    """Keep the hash of the reference that was fitted here, or compare it with the one that was kept.

    Raises:
        ValueError: the reference is not the one that the run was begun with.
    """
    if distributed.rank() == 0:
        before = resume.read_run(directory)
        if before.get("reference_sha256"):
            resume.compare(before, {"reference_sha256": fingerprint})
        else:
            resume.write_run(directory, before | {"reference_sha256": fingerprint})
    distributed.barrier()


def save_model_directory(model, tokenizer, directory):
    """A model with its tokenizer's files: what `train.py --init` and `sample.py --model` take.

    Every process must take part; the first writes, and none goes on before it has.
    """
    model = distributed.gather(model)
    if model:
        Path(directory).mkdir(parents=True, exist_ok=True)
        tokenizer.save(directory)
        save_model(model, directory, tokenizer.end_of_text)  # config.json comes last: with it the directory is whole
    distributed.barrier()


class Totals(dict):
    """Sums of metrics over pairs, so that a mean is exact however the pairs were divided into batches."""

    def add(self, metrics, loss_sum):
        """Add name → (B,) metrics, and the sum of the losses, a scalar; they stay on their device until `settle`."""
        for name, values in (metrics | {"loss": loss_sum}).items():
            dtype = torch.promote_types(values.dtype, torch.float32)
            total = values.detach().sum(dtype=dtype)
            self[name] = self.get(name, 0.0) + (total if total.device.type == "mps" else total.double())  # it has none

    def count(self, pairs, denominator, chosen_only):
        """Count what was added: pairs, what the loss is a mean over (pairs, or tokens), and tokens seen.

        Several processes add their shares, but each sees all of a step's pairs: the first counts them.
        """
        if distributed.rank():
            return
        tokens = sum(p.num_tokens - chosen_only * len(p.rejected_ids) for p in pairs)
        for name, number in (("pairs", len(pairs)), ("denominator", denominator), ("tokens", tokens)):
            self[name] = self.get(name, 0) + number

    def settle(self):
        """Name → number: itself, with every sum as a plain number; the device is waited for."""
        self.update({name: total.item() if torch.is_tensor(total) else total for name, total in self.items()})
        return dict(self)

    def means(self):
        """The mean of every metric; the sums start again from nothing."""
        pairs, denominator, loss = self.pop("pairs"), self.pop("denominator"), self.pop("loss")
        del self["tokens"]
        line = {"pairs": pairs, "loss": loss / denominator} | {name: total / pairs for name, total in self.items()}
        self.clear()
        return line


def check_losses(losses):
    """Check (loss, names of its rows) of all processes' micro-batches.

    Raises:
        FloatingPointError: one is not finite; its rows are named.
    """
    finite = torch.stack([loss for loss, _ in losses]).isfinite().tolist() if losses else []
    trouble = [
        f"the loss is {loss.item()} on {rows}" for (loss, rows), fine in zip(losses, finite, strict=True) if not fine
    ]
    for first, *_ in filter(None, distributed.everyone(trouble)):
        raise FloatingPointError(first)


class Log:
    """metrics.jsonl for machines and a line for people: it rewrites itself on a terminal, and is plain in a pipe.

    A resumed run first drops the lines that it is about to write again. Of several processes the first writes the
    file; `dpo_min.options.print_once` keeps the others from printing.
    """

    SHOWN = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}  # noqa: RUF012

    def __init__(self, directory, label, steps, epoch_steps, first=0, closing=(), look=lambda line: None):
        """A run of `steps` steps, `epoch_steps` to the epoch, that begins or goes on after step `first`.

        closing: the splits whose line of step `first` was written only because a shorter run ended there;
        look: called with every line.
        """
        self.closing, self.look = closing if first < steps else (), look
        self.path = Path(directory) / "metrics.jsonl"
        self.label, self.steps, self.epoch_steps, self.first = label, steps, epoch_steps, first
        self.live, self.text = sys.stdout.isatty(), ""
        self.start = self.last = time.perf_counter()
        if distributed.rank() == 0:
            self.begin(first)

    def begin(self, first):
        """The file, empty or with the lines that were earned by step `first`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        if first and self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        with write_atomically(self.path) as file:
            for line in lines:
                if line.endswith("\n") and earned(line, first, self.closing):
                    file.write(line.encode())

    def write(self, split, step, totals, **more):
        """Write and show the means of `totals` over all processes; it starts again. Returns the line."""
        totals.update(distributed.sums(totals.settle()))
        now = time.perf_counter()
        more["tokens_per_second"] = round(totals["tokens"] / (now - self.last), 1)
        pace = totals["pairs"] / (now - self.last)
        self.last = now
        line = {"split": split, "step": step, "epoch": round(step / self.epoch_steps, 4)} | totals.means() | more
        if distributed.rank() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        text = "  ".join(f"{short} {line[name]:.4f}" for name, short in self.SHOWN.items() if name in line)
        if split == "eval":
            self.show(step, f"held out: {text}", end="\n")
        else:
            self.text = f"{text}  {pace:.1f} pairs/s"
            self.show(step, self.text, end="" if self.live else "\n")
        self.look(line)
        return line

    def tick(self, step):
        """Count a step on a terminal's line; the last one stays."""
        if self.live:
            self.show(step, self.text, end="" if step < self.steps else "\n")

    def show(self, step, text, end):
        """Print label, step, figures, and the time left at the pace so far."""
        line = f"{self.label} {step:>{len(str(self.steps))}}/{self.steps}  {text}"
        if self.first < step < self.steps:
            left = int((time.perf_counter() - self.start) / (step - self.first) * (self.steps - step))
            line += f"  {left // 60}:{left % 60:02d} left"
        print(("\r\x1b[K" if self.live else "") + line, end=end, flush=True)


def earned(line, step, closing=()):
    """Whether a line of metrics is whole, of a step reached by `step`, and none of that step's `closing` lines."""
    try:
        line = json.loads(line)
        return line["step"] < step or (line["step"] == step and line["split"] not in closing)
    except (ValueError, KeyError, TypeError):
        return False


class Interrupt:
    """Ctrl-C and SIGTERM as a wish: the step is finished and saved first; a second Ctrl-C stops at once."""

    def __enter__(self):
        """Catch the signals."""
        self.requested, self.keys = False, 0
        self.previous = {number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def request(self, number, frame):
        """Note the wish; the second Ctrl-C does what it always did, and no other signal anything more."""
        if not self.requested and options.first_process():
            os.write(1, "\nstopping after this step …\n".encode())  # a signal may come in the middle of a print
        self.requested = True
        self.keys += number == signal.SIGINT
        if number == signal.SIGINT and self.keys > 1:
            signal.signal(number, self.previous[number])
            signal.raise_signal(number)

    def __exit__(self, *error):
        """Restore what the signals did before; but what is left to be written is not for another SIGTERM to stop."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.requested and self.previous[signal.SIGTERM] is options.quit_at_once:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def draw_curves(directory):
    """curves.png, where matplotlib is installed; a run needs no picture to be complete."""
    if distributed.rank():
        return
    try:
        plots = importlib.import_module("dpo_min.tools.plots")
    except ImportError as error:
        print(f"no curves.png ({error}): pip install matplotlib, then python -m dpo_min.tools.plots {directory}")
    else:
        plots.draw_curves(directory)


def guard(program, *arguments):
    """Run a program's main function; what can go wrong in the middle of it becomes one line, exit code 1 or 130.

    Where one of several processes fails, the others fail in turn, because it no longer answers: they are silent.
    """
    try:
        code = program(*arguments)
        distributed.barrier()  # torchrun stops the others as soon as one ends with a code
        return code
    except torch.OutOfMemoryError as error:
        stop(f"out of memory: lower --micro-batch-size or --max-length ({str(error).splitlines()[0]})", code=1)
    except (MemoryError, RuntimeError) as error:
        text = str(error).splitlines()[0][:200] if str(error) else "nothing is left"
        if isinstance(error, RuntimeError) and not any(
            word in str(error) for word in ("allocate", "not enough memory")
        ):
            fail(error)
        stop(f"out of memory: lower --micro-batch-size or --max-length ({text})", code=1)
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
        fail(error)
    finally:
        distributed.end()


def fail(error):
    """An error that nobody foresaw goes on as it is, from the first of several processes that meets one."""
    if not first_to_fail():
        sys.exit(1)
    raise error
