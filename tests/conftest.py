"""Fixtures that several test files share: models small enough to enumerate, and the shared data where it is there."""

import gc
import os
import signal
import sys
from pathlib import Path
from random import Random

import hypothesis
import pytest
import torch

from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.llama import Llama, LlamaConfig

# `make test` draws the same examples everywhere, so that a failure here is a failure there. `make hunt` searches: other
# examples each time, and HUNT times as many of them.
HUNT = int(os.environ.get("HUNT", "0"))
hypothesis.settings.register_profile(
    "test", derandomize=True, max_examples=40, deadline=None, database=None, print_blob=True
)
hypothesis.settings.register_profile("hunt", max_examples=40, deadline=None, print_blob=True)
hypothesis.settings.load_profile("hunt" if HUNT else "test")

# The models here are tiny: a second thread would cost more than it computes. Subprocesses inherit it.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Every machine has a CPU, and the tests compute there: a GPU's last bits are others. test_cuda.py alone asks for one.
# A process that these tests run in may have been started by another: then the other has kept what there was.
GPUS = os.environ.setdefault("GPUS_BEFORE_THE_TESTS", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Of together.py: the folder in which a process claims a file of tests, which process this is, and what comes first: the
# longest of the files.
CLAIMS, TURN = os.environ.pop("CLAIMS", None), int(os.environ.pop("TURN", "0"))
LONG = "readme mutants distributed train flags losses_of_a_run tokenizer_files golden generation stored_reference"
LONG = [f"test_{name}.py" for name in LONG.split()]
claimed = set()

HEARD = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.fixture(autouse=True)
def handlers():
    """A program that is run in this process leaves no handler of a signal to the next test."""
    before = {number: signal.getsignal(number) for number in HEARD}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def prefs(tmp_path_factory):
    """A file of 40 preferences."""
    from training import rows, write  # it imports the whole program, which most tests do not need

    return write(tmp_path_factory.mktemp("prefs") / "prefs.jsonl", rows(40))


@pytest.fixture(scope="module")
def init(tmp_path_factory, prefs):
    """A model directory, fitted on `prefs` by the command itself with --loss-type sft."""
    from training import TINY, fit

    out = tmp_path_factory.mktemp("init") / "run"
    assert fit("--data", prefs, "--loss-type", "sft", "--max-steps", 3, "--out", out, *TINY) == 0
    return out / "model"


@pytest.fixture
def quickly(monkeypatch):
    """Runs without what costs most of a short one and is looked at elsewhere: the picture, and waiting for the disk."""
    monkeypatch.setattr("train.draw_curves", lambda directory: None)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# A shell that starts the tests behind a script lets Ctrl-C be ignored, by them and by the programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def python_steps():
    """A function f → the lines of Python that f() runs: a count where seconds would depend on the machine."""

    def count(function):
        steps = 0

        def trace(frame, event, argument):
            nonlocal steps
            steps += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            function()
        finally:
            sys.settrace(before)
        return steps

    return count


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real preferences and GPT-2's vocabulary that lies beside the checkout in CI."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    return SHARED / "data"


@pytest.fixture(scope="session")
def tiny_gpt():
    """A real GPT in float64 over 5 tokens, 4 being end-of-text; its weights are large enough to be far from uniform."""
    return far_from_uniform(GPT, GPTConfig(vocab_size=5, block_size=12, n_layer=2, n_head=2, n_embd=8))


@pytest.fixture(scope="session")
def tiny_llama():
    """A real Llama of the same vocabulary and positions: two query heads to each head of keys, a head of its own."""
    sizes = {"vocab_size": 5, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 8, "n_inner": 12, "n_kv_head": 2}
    return far_from_uniform(Llama, LlamaConfig(**sizes, head_size=4, rope_theta=100.0, tied=False))


@pytest.fixture(scope="session", params=["gpt", "llama"])
def tiny_model(request):
    """Each architecture."""
    return request.getfixturevalue(f"tiny_{request.param}")


def far_from_uniform(kind, sizes):
    """A model of these sizes in float64, with noise on its initial weights."""
    generator = torch.Generator().manual_seed(0)
    model = kind(sizes, generator).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval().requires_grad_(False)


def pytest_collection_finish(session):
    """Before the first test: the mutants are started, which take a minute of one core, and garbage is set aside."""
    modules = {item.path.name: item.module for item in session.items}
    alone = not CLAIMS and "PYTEST_XDIST_WORKER" not in os.environ
    if alone and len(modules) > 1 and "test_mutants.py" in modules and not session.config.option.collectonly:
        modules["test_mutants.py"].start_early(session.config)
    gc.collect()
    gc.freeze()  # thousands of tests and all of PyTorch: a sixth of the time went into looking through them for garbage


def pytest_runtest_protocol(item):
    """Beside other processes a file belongs to the one that comes to it first; True leaves a test out."""
    if CLAIMS and item.path not in claimed:
        try:
            Path(CLAIMS, str(item.path).replace(os.sep, "-")).touch(exist_ok=False)
        except FileExistsError:
            return True
        claimed.add(item.path)
        item.session._setupstate.teardown_exact(item)  # what was kept for a test that the other process took
    return None


def pytest_collection_modifyitems(items):
    """Under HUNT properties alone are run, each on so many times as many examples as its test asks for."""
    if order := os.environ.get("SHUFFLE"):  # files, and the tests of each, in an order of its own for each number
        keys = {item.nodeid: Random(f"{order} {item.nodeid}").random() for item in items}
        files = {item.path: Random(f"{order} {item.path.name}").random() for item in items}
        items.sort(key=lambda item: (files[item.path], keys[item.nodeid]))
    elif CLAIMS:  # what takes longest comes first; every second process begins at the other end
        paths = [*dict.fromkeys(item.path for item in items)][:: -1 if TURN % 2 else 1]
        paths.sort(key=lambda path: LONG.index(path.name) if path.name in LONG else len(LONG))
        places = {path: place for place, path in enumerate(paths)}
        items.sort(key=lambda item: places[item.path])
    if HUNT:
        items[:] = [item for item in items if getattr(item.obj, "is_hypothesis_test", False)]
    # A function that is several tests, by its parameters, counts once.
    for function in {getattr(item.obj, "__func__", item.obj) for item in items} if HUNT else ():
        asked = function._hypothesis_internal_use_settings
        function._hypothesis_internal_use_settings = hypothesis.settings(asked, max_examples=HUNT * asked.max_examples)
