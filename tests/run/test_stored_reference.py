"""A stored reference is the live one to the last bit, or it is made again; and a reference that follows the policy."""

import copy
import functools
import gc
import shutil
import weakref

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import train
from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.weights import model_fingerprint
from dpo_min.run import session, stored_reference
from dpo_min.run.job import prepare
from dpo_min.run.models import load_models
from dpo_min.run.stored_reference import ReferenceLogps, follow, pair_digest
from dpo_min.run.train_flags import TrainFlags
from tests.training import LOG_2, equal, fit, metrics, stopped_in, weights, write

pytestmark = pytest.mark.usefixtures("quickly")

SETTINGS = {"batch_size": 8, "micro_batch_size": 4, "seed": 0, "dtype": "auto", "weights": "f00", "device": "cpu"}
GENERATOR = torch.Generator().manual_seed(0)
MODEL = GPT(GPTConfig(vocab_size=257, block_size=128, n_layer=2, n_head=4, n_embd=32), GENERATOR).requires_grad_(False)
for parameter in MODEL.parameters():
    parameter.mul_(4 if parameter.dim() == 2 else 1)  # far from uniform, so that a wrong batch moves the last bits


def draw(length):
    return torch.randint(257, (length,), generator=GENERATOR).tolist()


# Of unequal lengths: in another batch a row is padded to another width, which moves the last bits of some.
PAIRS = [TokenizedPair(draw(10 + 3 * i), draw(5 + 3 * i % 40), draw(4 + 5 * i % 33)) for i in range(24)]
SMALL = [TokenizedPair([1], [2, 3], [4]), TokenizedPair([5, 6], [7], [8, 9])]
ids = st.lists(st.integers(0, 2), min_size=1, max_size=3)
pairs = st.builds(TokenizedPair, ids, ids, ids)


def in_groups(pairs, size):
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


def autocast(dtype=torch.float32):
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def filled(directory, groups, model=MODEL, dtype=torch.float32, **settings):
    """What a run does: the object, filled by one forward for each group that needs it."""
    stored = ReferenceLogps(directory, SETTINGS | settings)
    stored.fill(functools.partial(batch_logps, model), groups, "cpu", autocast(dtype))
    return stored


def known(stored):
    """Digest → (chosen, rejected) of all that is stored."""
    return dict(zip(stored.digests.tolist(), map(tuple, stored.logps.tolist()), strict=True))


def never(*arguments):
    raise AssertionError("the model is asked although every pair is known")


# ---- the numbers ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 4, 24])
def test_what_is_looked_up_is_the_live_reference_to_the_last_bit(tmp_path, dtype, size):
    """Kills: scores of other batches than the run's, means stored and multiplied back, a file of another precision."""
    groups = in_groups(PAIRS, size)
    filled(tmp_path, groups, dtype=dtype)
    stored = ReferenceLogps(tmp_path, SETTINGS)
    for group in groups:
        for reduce in ("sum", "mean"):
            with torch.no_grad(), autocast(dtype):
                live = batch_logps(MODEL, pack(group), reduce).chunk(2)
            looked_up = stored.look_up(group, live[0], reduce)
            assert all(x.dtype == torch.float32 for x in looked_up)
            assert all(map(torch.equal, looked_up, live))


@given(st.lists(st.sampled_from(range(len(PAIRS))), max_size=30), st.sampled_from(["sum", "mean"]))
@example([], "sum")
@example([3, 3, 0], "mean")
def test_permuting_the_data_permutes_what_is_looked_up(filled_once, places, reduce):
    """Kills: a store by row number, which a shuffle or another split moves."""
    like = torch.zeros((), dtype=torch.float64)
    in_order = torch.stack(filled_once.look_up(PAIRS, like, reduce))
    if places:
        looked_up = torch.stack(filled_once.look_up([PAIRS[i] for i in places], like, reduce))
        assert torch.equal(looked_up, in_order[:, places])


@pytest.fixture(scope="module")
def filled_once(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("filled"), in_groups(PAIRS, 4))


def test_what_is_looked_up_has_the_type_that_is_asked_for(filled_once):
    for dtype in (torch.float32, torch.float64):
        for reduce in ("sum", "mean"):
            assert {x.dtype for x in filled_once.look_up(PAIRS, torch.zeros((), dtype=dtype), reduce)} == {dtype}


# ---- the key ----


def test_a_second_run_of_the_same_settings_asks_the_model_nothing(tmp_path):
    """Kills: a file that is written and never read; a name that holds the time, a path, or the order of settings."""
    groups = in_groups(PAIRS, 4)
    first = filled(tmp_path / "new" / "cache", groups)
    written = first.path.read_bytes()
    second = ReferenceLogps(str(tmp_path / "new" / "cache"), dict(reversed(SETTINGS.items())))
    second.fill(never, groups[::-1], "cpu", autocast())
    assert known(second) == known(first)
    assert second.path.read_bytes() == written
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]


def test_only_groups_with_a_new_pair_are_scored(tmp_path):
    """Kills: a fill that begins anew for one new row; a new row that is not scored because its file is there."""
    old, new = in_groups(PAIRS, 4)[:3], in_groups(PAIRS, 4)[3:]
    filled(tmp_path, old)
    forwards = []

    class Counts:
        head_weight, compiled = MODEL.head_weight, False

        def __call__(self, tokens, positions, masks):
            forwards.append(len(masks))
            return MODEL(tokens, positions, masks)

    stored = filled(tmp_path, [*old, *new], Counts())
    assert forwards == [4, 4, 4]
    stored.look_up(PAIRS, torch.zeros(()))
    assert known(ReferenceLogps(tmp_path, SETTINGS)) == known(stored)
    mixed = [PAIRS[2], TokenizedPair([1], [2], [3])]
    filled(tmp_path, [mixed]).look_up(mixed, torch.zeros(()))


@pytest.mark.parametrize("change", [{name: "other"} for name in SETTINGS] + [{"new": None}, {"seed": "0"}])
def test_a_file_is_not_found_under_other_settings(tmp_path, change):
    """Kills: a key that leaves one of them out."""
    filled(tmp_path, [SMALL])
    assert known(ReferenceLogps(tmp_path, SETTINGS))
    assert not known(ReferenceLogps(tmp_path, SETTINGS | change))
    assert not known(ReferenceLogps(tmp_path / "other", SETTINGS))


def test_a_file_of_another_format_or_pytorch_is_not_found(tmp_path, monkeypatch):
    """Kills: numbers of another version's kernels."""
    filled(tmp_path, [SMALL])
    for module, name, value in ((stored_reference, "FORMAT", -1), (torch, "__version__", "0.0")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert not known(ReferenceLogps(tmp_path, SETTINGS))
    assert known(ReferenceLogps(tmp_path, SETTINGS))


@given(pairs, pairs)
@example(TokenizedPair([0], [1, 2], [1]), TokenizedPair([0, 1], [2], [1]))
@example(TokenizedPair([0], [1, 2], [1]), TokenizedPair([0], [1], [2, 1]))
@example(TokenizedPair([0], [1], [2, 1]), TokenizedPair([0, 1], [2], [1]))
@example(TokenizedPair([0], [1], [2]), TokenizedPair([0], [2], [1]))
@example(TokenizedPair([0], [1], [2], "a"), TokenizedPair([0], [1], [2], "b"))
def test_two_pairs_share_a_number_where_all_their_ids_are_equal(a, b):
    """Kills: ids in one row without the lengths of its parts; the source or the row number in the key."""
    same = (a.prompt_ids, a.chosen_ids, a.rejected_ids) == (b.prompt_ids, b.chosen_ids, b.rejected_ids)
    assert (pair_digest(a) == pair_digest(b)) == same


def test_a_pair_that_was_never_scored_is_an_error(filled_once):
    """Kills: a zero, or another pair's number, for what is missing."""
    swapped = TokenizedPair(PAIRS[0].prompt_ids, PAIRS[0].rejected_ids, PAIRS[0].chosen_ids)
    with pytest.raises(KeyError):
        filled_once.look_up([PAIRS[0], swapped], torch.zeros(()))


@given(st.data())
def test_the_fingerprint_follows_every_weight(data):
    """Kills: a hash of the config, of some layers, of a sum, or of rounded weights."""
    model = copy.deepcopy(MODEL)
    assert model_fingerprint(model) == model_fingerprint(MODEL)
    flat = data.draw(st.sampled_from([p.view(-1) for p in model.parameters()]))
    place = data.draw(st.integers(0, len(flat) - 1))
    flat[place] = torch.nextafter(flat[place], torch.tensor(torch.inf))
    assert model_fingerprint(model) != model_fingerprint(MODEL)


def test_the_fingerprint_follows_names_shapes_and_types():
    """Kills: bytes alone, which two weights exchanged, or a type and a shape of the same bytes, leave as they are."""
    exchanged, turned, double = (copy.deepcopy(MODEL) for _ in range(3))
    first, second = MODEL.h[0].mlp.c_fc.weight, MODEL.h[1].mlp.c_fc.weight
    exchanged.h[0].mlp.c_fc.weight.copy_(second)
    exchanged.h[1].mlp.c_fc.weight.copy_(first)
    turned.wpe.weight = torch.nn.Parameter(turned.wpe.weight.view(64, 64), requires_grad=False)
    digests = {model_fingerprint(model) for model in (MODEL, exchanged, turned, double.double())}
    assert len(digests) == 4
    assert model_fingerprint(copy.deepcopy(MODEL).train()) == model_fingerprint(MODEL)


# ---- the file ----


def is_damaged(path, content, logps, capsys):
    """Whether the object of a file of this content says that it is damaged; else it must know what was written."""
    path.write_bytes(content)
    stored = ReferenceLogps(path.parent, SETTINGS)
    shown = capsys.readouterr().out
    if shown:
        assert str(path) in shown and "damaged" in shown and shown.count("\n") == 1
    assert known(stored) == ({} if shown else logps)
    return bool(shown)


def test_every_cut_of_a_file_is_named(tmp_path, capsys):
    """Kills: half a file, which is read as half of the pairs or ends the run."""
    first = filled(tmp_path, [SMALL])
    whole = first.path.read_bytes()
    for size in range(len(whole)):
        assert is_damaged(first.path, whole[:size], known(first), capsys), size


def test_no_byte_of_a_file_can_be_flipped_into_other_numbers(tmp_path, capsys):
    """Kills: numbers without a checksum, and any exception that one damaged byte can raise."""
    first, flip = filled(tmp_path, [SMALL]), np.random.default_rng(0).integers(1, 256, 10_000).tolist()
    whole = first.path.read_bytes()
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ flip[place]]) + whole[place + 1 :]
        is_damaged(first.path, changed, known(first), capsys)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04K\x01.", b"\x93NUMPY"])
def test_a_file_that_is_something_else_is_named_and_made_again(tmp_path, capsys, content):
    first = filled(tmp_path, [SMALL])
    assert is_damaged(first.path, content, known(first), capsys)
    assert known(filled(tmp_path, [SMALL])) == known(ReferenceLogps(tmp_path, SETTINGS)) == known(first)


@pytest.mark.parametrize("arrays", [
    {"digests": np.zeros((2, 16), np.uint8)},
    {"digests": np.zeros((2, 16), np.uint8), "logps": np.zeros((1, 2))},
    {"digests": np.zeros(2, object), "logps": np.zeros((2, 2))},
])  # fmt: skip
def test_a_file_of_other_arrays_is_named_and_made_again(tmp_path, capsys, arrays):
    """Kills: a pickle that is loaded, which could execute."""
    first = filled(tmp_path, [SMALL])
    np.savez(tmp_path / "other.npz", **arrays)
    assert is_damaged(first.path, (tmp_path / "other.npz").read_bytes(), known(first), capsys)


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_an_interrupted_fill_leaves_the_folder_as_it_was(tmp_path, error):
    """Kills: a file of the pairs scored so far under the name of a whole one, and a partial file left behind."""

    class Stops:
        head_weight, compiled, left = MODEL.head_weight, False, 2

        def __call__(self, *arguments):
            self.left -= 1
            if self.left == 0:
                raise error
            return MODEL(*arguments)

    groups = in_groups(PAIRS, 4)
    with pytest.raises(error):
        filled(tmp_path, groups, Stops())
    assert not list(tmp_path.iterdir())
    before = filled(tmp_path, groups[:1]).path.read_bytes()
    with pytest.raises(error):
        filled(tmp_path, groups, Stops())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    assert known(filled(tmp_path, groups)) == known(filled(tmp_path / "new", groups))


def test_a_folder_that_takes_no_file_stays_as_it_was_and_is_no_reason_to_stop(tmp_path, monkeypatch, capsys):
    """Kills: a file written in its place, byte by byte; a cache that a run needs."""

    def full(file, **arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    filled(tmp_path, [SMALL])
    assert not list(tmp_path.iterdir())
    assert "(No space left on device): another run scores again" in capsys.readouterr().out
    (tmp_path / "file").touch()
    filled(tmp_path / "file" / "cache", [SMALL])
    assert "(Not a directory): another run scores again" in capsys.readouterr().out


def test_the_memory_of_a_reference_is_free_once_it_is_stored(prefs, init, tmp_path, monkeypatch):
    """Kills: a name, somewhere among the callers, that still holds the model."""
    seen, load, begin = [], train.load_models, train.Stage.fit

    def noted(flags):
        policy, reference = load(flags)
        seen.append(weakref.ref(reference))
        return policy, reference

    def looked_for(self, *arguments):
        gc.collect()
        seen.append(seen[0]())
        return begin(self, *arguments)

    monkeypatch.setattr(train, "load_models", noted)
    monkeypatch.setattr(train.Stage, "fit", looked_for)
    flags = ["--data", prefs, "--init", init, "--reference", init, "--max-steps", 1]
    assert fit(*flags, "--out", tmp_path / "run") == 0
    assert seen[1:] == [None]


# ---- a reference that follows ----


@given(st.floats(0, 1, exclude_min=True), st.integers(0, 99))
@example(1.0, 0)
@example(5e-324, 0)
@example(0.5, 0)
def test_following_is_a_step_of_length_alpha_towards_the_policy(tiny_gpt, alpha, seed):
    """Kills: α and 1 − α exchanged; a step of the policy; a parameter left out."""
    generator = torch.Generator().manual_seed(seed)
    policy, target = copy.deepcopy(tiny_gpt).requires_grad_(), copy.deepcopy(tiny_gpt)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    kept = [p.clone() for p in policy.parameters()]
    follow(target, policy, alpha)
    for ours, before, theirs in zip(target.parameters(), tiny_gpt.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours, alpha * theirs + (1 - alpha) * before, rtol=1e-14, atol=1e-14)
        assert not ours.requires_grad and ours.grad is None
        if alpha == 1:
            assert torch.equal(ours, theirs)
    assert all(map(torch.equal, kept, policy.parameters()))
    assert all(p.requires_grad and p.grad is None for p in policy.parameters())


@given(st.floats(0.01, 1), st.integers(1, 20))
def test_a_policy_that_stands_still_is_approached_geometrically(alpha, steps):
    """Kills: a step measured from where the reference began. π_ref − π = (1 − α)^k of what it was."""
    policy, target = torch.nn.Linear(1, 1, bias=False).double(), torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        policy.weight.fill_(3.0)
        target.weight.fill_(1.0)
    for _ in range(steps):
        follow(target, policy, alpha)
    assert target.weight.item() == pytest.approx(3 - 2 * (1 - alpha) ** steps, abs=1e-12)


# ---- the command ----


def assert_close(ours, theirs):
    """The same lines, with figures equal to 1e-6."""
    for mine, line in zip(ours, theirs, strict=True):
        assert mine | {"split": 0} == pytest.approx(line | {"split": 0}, rel=1e-6, abs=1e-6)


@pytest.fixture(scope="module")
def base(prefs, init):
    """The flags of a run of eight steps, three to the epoch."""
    flags = "--max-steps 8 --batch-size 14 --micro-batch-size 4 --learning-rate 3e-3 --log-every 1 --eval-every 3"
    return ["--data", prefs, "--init", init, *flags.split()]


def cached(directory):
    return {path.name: path.read_bytes() for path in (directory / "cache").iterdir()}


def assert_no_reward_yet(lines):
    for line in lines:
        assert line["loss"] == pytest.approx(LOG_2, abs=1e-7)
        assert line["rewards/chosen"] == line["rewards/rejected"] == line["rewards/margins"] == 0
        assert line["rewards/accuracies"] == 0.5


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """The flags of one step of `MODEL` on rows of very unequal lengths, whose last bits follow their batch."""
    directory = tmp_path_factory.mktemp("unequal")
    session.save_model_directory(MODEL, load_tokenizer("bytes"), directory / "model")
    texts = ["".join(chr(97 + i % 26) for i in draw(5 + 7 * n % 53)) for n in range(120)]
    values = [dict(zip(("prompt", "chosen", "rejected"), texts[i : i + 3], strict=True)) for i in range(0, 120, 3)]
    data = write(directory / "prefs.jsonl", values)
    return [
        "--data",
        data,
        "--init",
        directory / "model",
        *"--max-steps 1 --batch-size 16 --micro-batch-size 4".split(),
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_stored_reference_starts_at_log_2_with_no_reward(tmp_path, unequal, dtype, reduce, monkeypatch):
    """Kills: numbers of batches that the run does not make; the cache of a run before, read in another precision."""
    flags = [*unequal, "--dtype", dtype, "--reduce", reduce]
    assert fit(*flags, "--out", tmp_path / "first") == 0
    assert_no_reward_yet(metrics(tmp_path / "first")[:2])  # the held-out rows, then the first step's own
    files = cached(tmp_path)
    monkeypatch.setattr(stored_reference, "pack", never)
    assert fit(*flags, "--out", tmp_path / "second") == 0
    assert metrics(tmp_path / "second") == metrics(tmp_path / "first")
    assert cached(tmp_path) == files


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_of_other_batches_is_not_taken_for_this_runs(tmp_path, unequal, dtype):
    """Kills: pairs found by their ids alone, though a run on other rows, or on another split, scored them."""
    flags = [*unequal, "--dtype", dtype, "--max-steps", 3]
    assert fit(*flags, "--eval-fraction", 0.4, "--out", tmp_path / "first") == 0
    assert_no_reward_yet(metrics(tmp_path / "first")[:2])
    assert fit(*flags, "--eval-fraction", 0.3, "--out", tmp_path / "second") == 0
    assert_no_reward_yet(metrics(tmp_path / "second")[:2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pair_that_stands_in_two_batches_has_the_number_of_each(tmp_path, unequal, dtype):
    """Kills: rows that occur twice, as where training rows are held out too."""
    assert fit(*unequal, "--dtype", dtype, "--eval-data", unequal[1], "--out", tmp_path / "run") == 0
    assert_no_reward_yet(metrics(tmp_path / "run")[:2])


def fit_live(monkeypatch, *argv):
    """The command with the reference kept, and asked in every step."""
    with monkeypatch.context() as patch:
        patch.setattr(TrainFlags, "stores_reference", False)
        return fit(*argv)


@pytest.mark.parametrize("argv", ["", "--reduce mean --loss-type ipo", "--dtype bfloat16 --max-steps 3"])
def test_a_run_with_a_stored_reference_is_the_run_with_a_live_one(tmp_path, base, monkeypatch, argv):
    """Kills: pairs looked up in the order of the data; held-out rows, or those of a later epoch, never scored."""
    assert fit(*base, *argv.split(), "--out", tmp_path / "stored") == 0
    assert fit_live(monkeypatch, *base, *argv.split(), "--out", tmp_path / "live") == 0
    stored, live = metrics(tmp_path / "stored"), metrics(tmp_path / "live")
    assert_close(stored, live)
    if "max-steps 3" in argv:  # of one epoch, whose batches are those that were scored
        assert stored == live
    assert live[-1]["rewards/margins"] != 0


@pytest.mark.parametrize(
    ("argv", "one"),
    [
        ("", True),
        ("--loss-type simpo", False),
        ("--reference-refresh 2", False),
        ("--max-kl 1", False),
        ("--reference", False),
    ],
)
def test_a_reference_that_is_asked_before_the_first_step_alone_is_the_policy(base, argv, one):
    """Kills: a second copy of the weights, loaded, hashed and freed again; a live reference that is trained."""
    directory = [base[base.index("--init") + 1]] if argv == "--reference" else []
    policy, reference = load_models(prepare([str(a) for a in [*base, *argv.split(), *directory]]).flags)
    assert (reference is policy) == one
    assert (reference is None) == ("simpo" in argv)


def test_what_the_numbers_depend_on_has_a_file_of_its_own_and_nothing_else_has(tmp_path, base, prefs):
    """Kills: the reference of other weights or batches; one that is scored anew for a β or a loss."""
    short = [*base, "--max-steps", 1]
    moved = tmp_path / "moved"
    assert fit(*short, "--out", moved) == 0
    files = cached(tmp_path)
    for i, argv in enumerate(["--beta 1", "--loss-type ipo", "--reduce mean", "--optimizer rmsprop"]):
        assert fit(*short, *argv.split(), "--out", tmp_path / f"same-{i}") == 0
        assert cached(tmp_path) == files
    others = [
        "--batch-size 7",
        "--micro-batch-size 3",
        "--seed 1",
        "--dtype bfloat16",
        f"--reference {moved / 'model'}",
    ]
    for i, argv in enumerate(others):
        assert fit(*short, *argv.split(), "--out", tmp_path / f"other-{i}") == 0
        assert len(cached(tmp_path)) == len(files) + i + 1
        assert cached(tmp_path).items() >= files.items()


def test_no_reference_is_stored_where_it_moves_or_where_there_is_none(tmp_path, base):
    """Kills: a moving reference read from the file of where it began."""
    assert fit(*base, "--reference-refresh", 2, "--out", tmp_path / "moves") == 0
    assert fit(*base, "--loss-type", "sft", "--out", tmp_path / "sft") == 0
    assert not (tmp_path / "cache").exists()


def test_a_damaged_file_does_not_stop_the_command(tmp_path, base, capsys):
    assert fit(*base, "--out", tmp_path / "first") == 0
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert fit(*base, "--out", tmp_path / "second") == 0
    assert f"{path} is damaged" in capsys.readouterr().out
    assert metrics(tmp_path / "second") == metrics(tmp_path / "first")


def test_a_step_of_length_1_makes_the_reference_the_policy(tmp_path, base):
    """Kills: a refresh one step late or early, or of another multiple; one that the loss does not see."""
    assert fit(*base, "--reference-refresh", 3, "--reference-alpha", 1, "--out", tmp_path / "run") == 0
    assert fit(*base, "--out", tmp_path / "plain") == 0
    lines, plain = metrics(tmp_path / "run", "train"), metrics(tmp_path / "plain", "train")
    assert_no_reward_yet([lines[0], lines[3], lines[6]])
    for line in (1, 2, 4, 5, 7):
        assert lines[line]["rewards/margins"] != 0
    assert_no_reward_yet([line for line in metrics(tmp_path / "run", "eval") if line["step"] in (0, 3, 6)])
    assert_close(lines[:3], plain[:3])


def test_a_refresh_changes_the_run_from_its_own_step_on(tmp_path, base, monkeypatch):
    """Kills: --reference-refresh or --reference-alpha parsed and then forgotten."""
    assert fit_live(monkeypatch, *base, "--out", tmp_path / "live") == 0
    live = metrics(tmp_path / "live", "train")
    for i, argv in enumerate(["", "--reference-alpha 0.2"]):
        out = tmp_path / f"refresh-{i}"
        assert fit(*base, "--reference-refresh", 2, *argv.split(), "--out", out) == 0
        lines = metrics(out, "train")
        assert lines[:2] == live[:2]
        assert all(ours["loss"] != theirs["loss"] for ours, theirs in zip(lines[2:], live[2:], strict=True))
        assert not equal(weights(out / "model"), weights(tmp_path / "live" / "model"))
    assert metrics(tmp_path / "refresh-0") != metrics(tmp_path / "refresh-1")


@pytest.mark.parametrize("argv", ["--reference-refresh 2 --reference-alpha 1e-300", "--reference-refresh 9"])
def test_a_refresh_that_moves_nothing_is_the_live_reference(tmp_path, base, monkeypatch, argv):
    """Kills: anything else that --reference-refresh would change."""
    assert fit_live(monkeypatch, *base, "--out", tmp_path / "live") == 0
    assert fit(*base, *argv.split(), "--out", tmp_path / "still") == 0
    assert metrics(tmp_path / "still") == metrics(tmp_path / "live")
    assert equal(weights(tmp_path / "still" / "model"), weights(tmp_path / "live" / "model"))


def fit_in_parts(stop_at, between, *argv):
    """The command, stopped by Ctrl-C during a step, and again with --resume."""
    with stopped_in(stop_at):
        assert fit(*argv) == 130
    between()
    assert fit(*argv, "--resume") == 0


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_a_moving_reference_survives_an_interrupt_to_the_last_bit(tmp_path, base, stop_at):
    """Kills: a resumed run whose reference is where it began; a refresh done twice, or not, at the step of the stop."""
    flags = [*base, "--reference-refresh", 2]
    assert fit(*flags, "--out", tmp_path / "whole") == 0
    fit_in_parts(stop_at, lambda: None, *flags, "--out", tmp_path / "parts")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert equal(weights(tmp_path / "parts" / "model"), weights(tmp_path / "whole" / "model"))


def test_a_stored_reference_survives_an_interrupt_and_the_loss_of_its_file(tmp_path, base):
    """Kills: a resumed run that makes the trained policy its reference."""
    assert fit(*base, "--out", tmp_path / "whole") == 0
    lose = lambda: shutil.rmtree(tmp_path / "cache")  # noqa: E731
    fit_in_parts(4, lose, *base, "--out", tmp_path / "parts")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert equal(weights(tmp_path / "parts" / "model"), weights(tmp_path / "whole" / "model"))


@pytest.mark.parametrize(("argv", "named"), [
    ("--reference-alpha 0.5", "--reference-alpha has no effect without --reference-refresh"),
    ("--loss-type sft --reference-refresh 2", "--reference-refresh has no effect with --loss-type sft"),
    ("--reference-refresh 0", "--reference-refresh: expected a whole number from 1"),
    ("--reference-refresh 2 --reference-alpha 0", "--reference-alpha: expected a number above 0"),
    ("--reference-refresh 2 --reference-alpha 1.1", "--reference-alpha: expected a number above 0"),
    ("--reference-refresh 2 --reference-alpha nan", "--reference-alpha: expected a number above 0"),
])  # fmt: skip
def test_a_flag_of_the_reference_without_effect_or_sense_is_refused(tmp_path, base, capsys, argv, named):
    with pytest.raises(SystemExit, match="2"):
        fit(*base, *argv.split(), "--out", tmp_path / "run")
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
