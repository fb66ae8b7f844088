"""The loop: from a file of preferences to a better model, with real tiny models and the real command line."""

import copy
import gzip
import json
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import example, given, settings
from hypothesis import strategies as st

import train
from dpo_min.data.batch import pack
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.losses import LOSSES
from dpo_min.margin_losses import MARGIN_LOSSES
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.weights import load_model
from dpo_min.preference import margin
from dpo_min.run import checkpoint, log
from dpo_min.run.job import prepare
from dpo_min.run.loss_flags import LOSS_NAMES, ROWS, SMOOTHED
from dpo_min.run.optimizer import schedule
from dpo_min.run.train_flags import TrainFlags
from dpo_min.system import program
from tests.training import LOG_2, TINY, equal, fit, metrics, rows, stopped_in, weights, write

ROOT = Path(train.__file__).parent
pytestmark = pytest.mark.usefixtures("quickly")


# --- the whole path ---------------------------------------------------------------------------------------------


def test_the_command_makes_a_better_model_of_1000_demo_pairs(tmp_path):
    """The held-out loss falls below log 2 and the reward that made the labels rises."""
    demo = pytest.importorskip("experiments.demo", reason="the demo is deletable")
    generator = torch.Generator().manual_seed(0)
    data = write(tmp_path / "prefs.jsonl", [demo.make_pair(generator) for _ in range(1000)])
    reviews = write(tmp_path / "reviews.jsonl", [demo.make_pair(generator, unlabelled=True) for _ in range(2000)])
    (tmp_path / "tokenizer").mkdir()
    demo.make_tokenizer().save(tmp_path / "tokenizer")
    out = tmp_path / "run"
    command = f"""train.py --data {data} --sft-data {reviews} --tokenizer {tmp_path / "tokenizer"}
        --out {out} --max-length 96 --n-layer 1 --n-embd 64 --sft-steps 80 --max-steps 40 --beta 0.4
        --learning-rate 1e-3 --micro-batch-size 32 --eval-fraction 0.2 --eval-every 20"""
    shown = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "held out" in shown.stdout and "\x1b" not in shown.stdout  # plain lines in a pipe
    losses = [line["loss"] for line in metrics(out, "eval")]
    assert losses[0] == pytest.approx(LOG_2, abs=1e-7)
    assert min(losses) < LOG_2 - 0.02
    assert (out / "curves.png").stat().st_size > 10_000
    report = pytest.importorskip("experiments.report")
    tokenizer = load_tokenizer(out / "model")
    policy, reference = load_model(out / "model"), load_model(out / "reference")
    texts = [report.answer(model, tokenizer, demo.prompts(held_out=True) * 8, seed=0) for model in (reference, policy)]
    before, after = (sum(demo.reward(tokenizer.decode(ids)) for ids in side) / len(side) for side in texts)
    assert after > before + 0.3  # 992 answers each: the difference has a standard error of 0.06


def test_the_run_directory_holds_all_that_was_promised(tmp_path, prefs, capsys):
    out = tmp_path / "run"
    assert fit("--data", prefs, "--max-steps", 3, "--out", out, *TINY) == 0
    assert f"done: {out / 'model'}" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["beta"] == 0.1 and config["max_length"] == 48 and len(config["data_sha256"]) == 64
    assert set(config["versions"]) == {"python", "torch"}
    for directory in ("model", "reference", "best"):
        assert load_model(out / directory).config.n_embd == 16
        assert load_tokenizer(out / directory).vocab_size == 257
    expected = {"split", "step", "epoch", "pairs", "loss", "rewards/chosen", "rewards/rejected", "rewards/margins"}
    expected |= {"rewards/accuracies", "logps/chosen", "logps/rejected"}
    for line in metrics(out):
        assert set(line) - {"grad_norm", "learning_rate"} == expected
        assert (line["split"] == "train") == ("grad_norm" in line) == ("learning_rate" in line)


def test_same_seed_same_weights_other_seed_others(tmp_path, prefs):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert fit("--data", prefs, "--max-steps", 3, "--seed", seed, "--out", tmp_path / out, *TINY) == 0
    a, b, c = (weights(tmp_path / out / "model") for out in "abc")
    assert equal(a, b)
    assert not equal(a, c)


def test_real_preferences_start_at_log_2(tmp_path, shared_data):
    out = tmp_path / "run"
    data = shared_data / "hh-harmless-test.jsonl.gz"
    assert fit("--data", data, "--max-steps", 1, "--batch-size", 4, "--out", out, *TINY) == 0
    line = metrics(out, "eval")[0]
    assert line["step"] == 0 and line["loss"] == pytest.approx(LOG_2, abs=1e-7)
    assert line["rewards/chosen"] == line["rewards/rejected"] == line["rewards/margins"] == 0
    assert line["rewards/accuracies"] == 0.5


# --- step 0 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_step_0_has_no_reward_yet_a_gradient(tmp_path, prefs, init, dtype):
    """Kills: dropout, a reference in another dtype or on another path; "loss log 2 means no gradient"."""
    out = tmp_path / "run"
    assert (
        fit("--data", prefs, "--init", init, "--dtype", dtype, "--max-steps", 1, "--out", out, "--max-length", 48) == 0
    )
    for line in metrics(out)[:2]:  # the held-out rows before the first step, and the first step's own
        assert line["loss"] == pytest.approx(LOG_2, abs=1e-7)
        assert line["rewards/chosen"] == line["rewards/rejected"] == line["rewards/margins"] == 0
        assert line["rewards/accuracies"] == 0.5
    assert metrics(out, "train")[0]["grad_norm"] > 0


def test_one_step_moves_the_policy_and_not_the_reference(prefs, init, tmp_path):
    """Kills: the optimiser given the reference's parameters; one module serving as both models."""
    stage, pairs = make_stage(init, prefs, tmp_path)
    before = {name: tensor.clone() for name, tensor in stage.reference.state_dict().items()}
    assert equal(before, stage.policy.state_dict())
    held = {id(p) for group in stage.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in stage.policy.parameters()}
    assert held.isdisjoint(id(p) for p in stage.reference.parameters())
    stage.step(pairs, stage.packed(pairs), log.Totals())
    assert equal(before, stage.reference.state_dict())
    assert all(p.grad is None for p in stage.reference.parameters())
    assert not equal(before, stage.policy.state_dict())
    totals = log.Totals()
    denominator = stage.count_step(pairs, totals)
    for *micro, _ in stage.packed(pairs):
        stage.share(*micro, denominator, totals)
    assert totals.means()["loss"] < LOG_2


def make_stage(init, prefs, directory, *argv):
    """A stage in float64, and its pairs."""
    flags = ["--data", prefs, "--init", init, "--out", directory / "stage", "--eval-fraction", 0, "--max-length", 48]
    config, tokenizer, pairs, *_ = prepare([str(a) for a in [*flags, *argv]])
    policy, reference = train.build_models(config, tokenizer)
    reference = reference and copy.deepcopy(reference).double()  # a live one, whatever the run would make of it
    return train.Stage(config, policy.double(), reference, directory), pairs


# --- micro-batches and metrics ----------------------------------------------------------------------------------

NARROW = GPT(GPTConfig(vocab_size=5, block_size=12, n_layer=1, n_head=1, n_embd=4), torch.Generator().manual_seed(0))
IDS = st.lists(st.integers(0, 4), min_size=1, max_size=5)
# Answers differ, as those of data always do; of equal ones rounding decides which side wins.
PAIR = st.builds(TokenizedPair, IDS, IDS, IDS).filter(lambda pair: pair.chosen_ids != pair.rejected_ids)
PAIRS = st.lists(PAIR, min_size=1, max_size=7)
UNEQUAL = [TokenizedPair([0], [1, 4], [2, 3, 4]), TokenizedPair([1, 2], [3], [4]), TokenizedPair([3], [0, 1], [4])]


def gradients(argv, pairs, micro_batch_size):
    """Gradients and mean metrics of one step's pairs, cut into micro-batches of a size, from moved weights."""
    config = TrainFlags(data=[], micro_batch_size=micro_batch_size, learning_rate=0.1, **argv)
    policy, reference = GPT(NARROW.config).double(), GPT(NARROW.config).double()
    reference.load_state_dict(NARROW.state_dict())
    policy.load_state_dict({name: tensor + 0.1 for name, tensor in NARROW.state_dict().items()})
    stage = train.Stage(config, policy, None if config.loss_type == "sft" else reference, None)
    totals = log.Totals()
    denominator = stage.count_step(pairs, totals)
    for *micro, _ in stage.packed(pairs):
        stage.share(*micro, denominator, totals)[0].backward()
    totals.settle()
    return torch.cat([p.grad.flatten() for p in policy.parameters()]), totals.means()


@pytest.mark.parametrize("argv", [{}, {"reduce": "mean"}, {"loss_type": "sft"}], ids=["sum", "mean", "sft"])
@settings(max_examples=25)
@given(pairs=PAIRS, size=st.integers(1, 7))
@example(pairs=UNEQUAL, size=2)
def test_micro_batches_of_any_sizes_give_the_gradient_and_metrics_of_the_full_batch(argv, pairs, size):
    """Kills: each micro-batch's mean divided by the number of micro-batches; metrics as a mean of means."""
    whole, line = gradients(argv, pairs, len(pairs))
    parts, parts_line = gradients(argv, pairs, size)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    assert parts_line == pytest.approx(line, rel=1e-5, abs=1e-6)
    assert line["pairs"] == len(pairs)


@pytest.mark.parametrize("name", LOSS_NAMES)
@pytest.mark.parametrize("epsilon", [None, 0.3])
def test_the_loss_can_be_recomputed_from_the_logged_rewards(prefs, init, tmp_path, name, epsilon):
    """Kills: rewards logged without β, or from other log-probabilities than the loss saw; ε or the name forgotten."""
    smoothing = ["--label-smoothing", epsilon] if epsilon and name in SMOOTHED else []
    if "offset" in LOSSES[name].arguments:
        prefs = write(tmp_path / "offsets.jsonl", [row | {"offset": i / 40} for i, row in enumerate(rows(40))])
    stage, pairs = make_stage(init, prefs, tmp_path, "--micro-batch-size", 40, "--loss-type", name, *smoothing)
    for _ in range(3):
        stage.step(pairs, stage.packed(pairs), log.Totals())
    loss, line = stage.loss(pairs, pack(pairs), len(pairs))
    a, b = (line[f"rewards/{side}"] / stage.flags.beta for side in ("chosen", "rejected"))
    lengths = torch.tensor([(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]).double().T
    facts = {"policy_chosen_logps": line["logps/chosen"], "chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}
    facts |= {
        "offset": torch.tensor([pair.offset for pair in pairs]).double(),
        "label_smoothing": epsilon if smoothing else None,
        "shift": stage.criterion.shift,
    }
    more = {key: facts[key] for key in LOSSES[name].arguments.keys() & facts.keys()}
    sides = (a - b,) if name in MARGIN_LOSSES else (a, b)
    recomputed = LOSSES[name].value(*sides, stage.flags.beta, **more).mean()
    torch.testing.assert_close(recomputed, loss, rtol=1e-12, atol=1e-12)
    assert (stage.criterion.shift != 0) == (name == "bco")
    h = margin(line["rewards/chosen"], line["rewards/rejected"], *[torch.zeros_like(line["rewards/chosen"])] * 2)
    torch.testing.assert_close(h, line["rewards/margins"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("argv", [["--batch-size", "7"], ["--micro-batch-size", "3"], ["--epochs", "2"]])
def test_steps_and_pairs_of_an_epoch_are_counted_exactly(tmp_path, prefs, init, argv):
    """Kills: a last batch that is dropped, or that leaks into the next epoch."""
    out = tmp_path / "run"
    flags = ["--init", init, "--eval-fraction", 0, "--log-every", 1, "--out", out, "--max-length", 48]
    assert fit("--data", prefs, *flags, *argv) == 0
    batch_size, epochs = (7, 1) if "--batch-size" in argv else (32, 2 if "--epochs" in argv else 1)
    lines = metrics(out)
    assert len(lines) == epochs * -(-40 // batch_size)
    assert sum(line["pairs"] for line in lines) == 40 * epochs
    assert lines[-1]["epoch"] == epochs


def test_eval_metrics_do_not_depend_on_the_micro_batch(tmp_path, prefs, init):
    lines = []
    for size in (1, 5, 32):
        out = tmp_path / str(size)
        fit("--data", prefs, "--init", init, "--max-length", 48, "--max-steps", 2, "--eval-data", prefs,
            "--micro-batch-size", size, "--out", out)  # fmt: skip
        lines.append({name: value for name, value in metrics(out, "eval")[-1].items() if name != "split"})
    assert lines[0] == pytest.approx(lines[1], rel=1e-4, abs=1e-6)
    assert lines[0] == pytest.approx(lines[2], rel=1e-4, abs=1e-6)
    assert lines[0]["pairs"] == 40


# --- schedule, optimisers, variants -----------------------------------------------------------------------------


@given(shape=st.sampled_from(["constant", "linear", "cosine"]), steps=st.integers(1, 500), warmup=st.integers(0, 600))
@example(shape="linear", steps=1, warmup=0)
def test_the_learning_rate_warms_up_linearly_then_never_rises_and_never_reaches_zero(shape, steps, warmup):
    """Kills: a schedule that ends at zero one step early, or starts at zero."""
    rates = [schedule(shape, step, steps, warmup) for step in range(1, steps + 1)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == [step / (warmup + 1) for step in range(1, min(steps, warmup) + 1)]
    after = rates[warmup:]
    assert after == sorted(after, reverse=True) and after[:1] in ([], [1.0])
    if shape == "constant":
        assert set(after) <= {1.0}
    elif len(after) > 1:
        assert after[-1] < 1


def test_the_schedules_worked_by_hand():
    assert schedule("constant", 1, 100, 10) == 1 / 11 and schedule("constant", 10, 100, 10) == 10 / 11
    assert schedule("constant", 11, 100, 10) == schedule("constant", 1, 100, 0) == 1.0
    assert schedule("cosine", 100, 199, 0) == pytest.approx(0.5, abs=0.01)
    assert schedule("linear", 51, 100, 0) == 0.5


@pytest.fixture(scope="module")
def plain(tmp_path_factory, prefs, init):
    """The weights that four steps leave without any of the flags below."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert fit("--data", prefs, "--init", init, "--max-steps", 4, "--max-length", 48, "--out", out) == 0
    return weights(out / "model")


@pytest.mark.parametrize(
    "argv",
    ["--beta 1", "--reduce mean", "--optimizer rmsprop", "--weight-decay 1", "--max-grad-norm 1e-4", "--warmup-steps 2",
     "--lr-schedule linear", "--lr-schedule cosine", "--learning-rate 1e-3", "--dtype bfloat16", "--dtype float16",
     "--max-length 9", "--max-prompt-length 1 --max-length 9", "--batch-size 4", "--seed 1", "--eval-fraction 0.5",
     "--loss-type sft", "--loss-type sigmoid:1,sft:0.1", "--wpo",
     *[f"--loss-type {name}" for name in [*MARGIN_LOSSES, "rpo", "simpo", "ld"][1:]]],
)  # fmt: skip
def test_every_variant_changes_the_weights(tmp_path, prefs, init, plain, argv):
    """Kills: a flag that is parsed and then forgotten."""
    flags = [*argv.split(), *([] if "--max-length" in argv else ["--max-length", 48])]
    assert fit("--data", prefs, "--init", init, "--max-steps", 4, *flags, "--out", tmp_path / "run") == 0
    assert not equal(plain, weights(tmp_path / "run" / "model"))


def test_a_reference_of_its_own_is_used(tmp_path, prefs, init):
    assert fit("--data", prefs, "--init", init, "--max-steps", 4, "--learning-rate", 1e-2, "--out", tmp_path / "a") == 0
    moved = tmp_path / "a" / "model"
    out = tmp_path / "b"
    assert fit("--data", prefs, "--init", moved, "--reference", init, "--max-steps", 1, "--out", out) == 0
    assert metrics(out)[0]["rewards/margins"] != 0


def test_the_first_fit_takes_its_rows_and_steps_from_its_own_flags(tmp_path, prefs):
    other = write(tmp_path / "other.jsonl", rows(4))
    out = tmp_path / "run"
    flags = ["--sft-data", other, "--sft-steps", 2, "--max-steps", 1, "--out", out]
    assert fit("--data", prefs, *flags, "--log-every", 1, *TINY) == 0
    lines = metrics(out / "reference", "train")
    assert [line["step"] for line in lines] == [1, 2]
    assert [line["pairs"] for line in lines] == [4, 4]
    assert "rewards/margins" not in lines[0]


def test_several_files_gz_and_skipped_rows(tmp_path, prefs, init, capsys):
    with gzip.open(tmp_path / "more.jsonl.gz", "wt") as file:
        file.write(json.dumps(rows(1)[0]) + "\nnot json\n")
    files = [prefs, tmp_path / "more.jsonl.gz"]
    flags = ["--skip-bad-rows", "--eval-fraction", 0, "--init", init, "--max-steps", 1, "--out", tmp_path / "run"]
    assert fit("--data", *files, *flags) == 0
    shown = capsys.readouterr().out
    assert "1 bad rows skipped" in shown and "41 pairs to train on" in shown


# --- stopping and going on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [1, 3, 5, 7])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_last_bit(tmp_path, prefs, init, capsys, stop_at):
    """Kills: the data order, the optimiser's state or the metrics starting over. 40 pairs are 3 steps an epoch."""
    base = ["--data", prefs, "--init", init, "--max-steps", 8, "--batch-size", 14, "--max-length", 48, "--log-every", 2]
    assert fit(*base, "--out", tmp_path / "whole") == 0
    with stopped_in(stop_at):
        assert fit(*base, "--out", tmp_path / "parts") == 130
    assert "--resume" in capsys.readouterr().out
    assert (tmp_path / "parts" / "checkpoint" / f"step-{stop_at:08d}").is_dir()
    load_model(tmp_path / "parts" / "model")
    assert fit(*base, "--out", tmp_path / "parts", "--resume") == 0
    assert equal(weights(tmp_path / "whole" / "model"), weights(tmp_path / "parts" / "model"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def test_a_first_fit_can_be_interrupted_and_resumed_too(tmp_path, prefs):
    base = ["--data", prefs, "--sft-steps", 4, "--max-steps", 2, *TINY]
    assert fit(*base, "--out", tmp_path / "whole") == 0
    with stopped_in(2, signal.SIGTERM):
        assert fit(*base, "--out", tmp_path / "parts") == 130
    assert fit(*base, "--out", tmp_path / "parts", "--resume") == 0
    assert equal(weights(tmp_path / "whole" / "model"), weights(tmp_path / "parts" / "model"))


def test_an_interrupt_in_the_last_step_of_the_first_fit_is_not_swallowed(tmp_path, prefs):
    base = ["--data", prefs, "--sft-steps", 2, "--max-steps", 2, *TINY, "--out", tmp_path / "run"]
    with stopped_in(2):
        assert fit(*base) == 130
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert fit(*base, "--resume") == 0
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == [1, 2]


def test_a_damaged_checkpoint_is_named_and_a_torn_metrics_line_is_dropped(tmp_path, prefs, init, capsys):
    base = ["--data", prefs, "--init", init, "--max-length", 48, "--max-steps", 2, "--out", tmp_path / "run"]
    assert fit(*base) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(lines + '{"step": 2, "los\n')
    assert fit(*base, "--resume") == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == lines
    (path,) = (tmp_path / "run" / "checkpoint").iterdir()
    assert {"state.json", ".metadata"} < {file.name for file in path.iterdir()}
    for file in path.iterdir():
        whole = file.read_bytes()
        for cut in (0, 10, len(whole) // 2):
            file.write_bytes(whole[:cut])
            with pytest.raises(SystemExit, match="1"):
                fit(*base, "--resume")
            assert f"{path.name}: damaged" in capsys.readouterr().err, (file.name, cut)
        file.write_bytes(whole)
    assert fit(*base, "--resume") == 0


def test_a_checkpoint_is_data_and_cannot_execute(tmp_path, prefs, init, capsys):
    """Kills: a table of contents that is unpickled as it comes, or an entry that is."""
    base = ["--data", prefs, "--init", init, "--max-length", 48, "--max-steps", 1, "--out", tmp_path / "run"]
    assert fit(*base) == 0
    (path,) = (tmp_path / "run" / "checkpoint").iterdir()

    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    assert json.loads((path / ".metadata").read_text())["ln_f.bias"]["shape"] == [16]  # no pickle
    shard, *_ = path.glob("*.distcp")
    contents, tensors = (path / ".metadata").read_bytes(), shard.read_bytes()
    for change in (
        lambda: (path / ".metadata").write_bytes(pickle.dumps(Touch())),
        lambda: dcp.save({name: Touch() for name in weights(init)}, checkpoint_id=path),  # PyTorch's own, with objects
        lambda: shard.write_bytes(pickle.dumps(Touch()).ljust(len(tensors))),
    ):
        (path / ".metadata").write_bytes(contents)
        shard.write_bytes(tensors)
        with warnings.catch_warnings(action="ignore"):
            change()
        checkpoint.seal(path)  # with the checksums of what it holds now
        with pytest.raises(SystemExit, match="1"):
            fit(*base, "--resume")
        assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_a_finished_run_resumes_to_itself_and_another_run_is_refused(tmp_path, prefs, init, capsys):
    base = ["--data", prefs, "--init", init, "--max-length", 48, "--out", tmp_path / "run"]
    assert fit(*base, "--max-steps", 2) == 0
    before = weights(tmp_path / "run" / "model")
    assert fit(*base, "--max-steps", 2, "--resume") == 0
    assert equal(before, weights(tmp_path / "run" / "model"))
    with pytest.raises(SystemExit, match="2"):
        fit(*base, "--max-steps", 2, "--beta", 0.5, "--resume")
    assert "--beta was 0.1" in capsys.readouterr().err


def test_a_run_whose_reference_has_other_weights_by_now_is_not_resumed(tmp_path, prefs, init, capsys):
    """Kills: the trained model, or another one at the same path, silently taken for the reference."""
    model = shutil.copytree(init, tmp_path / "model")
    base = ["--data", prefs, "--init", model, "--max-length", 48, "--max-steps", 2, "--out", tmp_path / "run"]
    assert fit(*base) == 0
    shutil.copytree(tmp_path / "run" / "model", model, dirs_exist_ok=True)
    with pytest.raises(SystemExit, match="2"):
        fit(*base, "--resume")
    assert "--resume: the hash of the model in --init was" in capsys.readouterr().err


# --- what goes wrong --------------------------------------------------------------------------------------------


def broken(tmp_path, prefs, init):
    """name → (arguments, what the one line must name)."""
    good = prefs.read_text()
    files = {
        "empty": b"",
        "binary": b"\xff\xfe\n",
        "text": b"not json\n",
        "list": b"[1]\n",
        "types": b'{"prompt": 1, "chosen": "a", "rejected": "b"}\n',
        "blank": b'{"prompt": "x", "chosen": "", "rejected": "b"}\n',
        "same": b'{"prompt": "x", "chosen": "a", "rejected": "a"}\n',
        "late": good.encode() + b"{}\n",
    }
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_bytes(content)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good.encode())[:-9])
    damaged = tmp_path / "damaged"
    shutil.copytree(init, damaged)
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"n_embd": 8, "n_head": 1}))
    naked = tmp_path / "naked"
    shutil.copytree(init, naked)
    for name in ("vocab.json", "tokenizer.json"):
        (naked / name).unlink()
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    yield from {f"{name}.jsonl": ([tmp_path / f"{name}.jsonl"], f"{name}.jsonl") for name in files}.items()
    yield "late row", ([tmp_path / "late.jsonl"], "late.jsonl:41: missing key: chosen, rejected")
    yield "cut gz", ([tmp_path / "cut.jsonl.gz"], "cut.jsonl.gz")
    yield "missing file", ([tmp_path / "nowhere.jsonl"], "nowhere.jsonl")
    yield "directory", ([tmp_path], str(tmp_path))
    yield "unknown flag", ([prefs, "--bta", "0.2"], "--bta: unknown argument; did you mean --beta?")
    yield "beta 0", ([prefs, "--beta", "0"], "--beta: expected a number from 10^-6 to 10^9")
    yield "beta negative", ([prefs, "--beta", "-0.1"], "--beta")
    yield "beta nan", ([prefs, "--beta", "nan"], "--beta")
    yield "loss", ([prefs, "--loss-type", "dpo"], "--loss-type")
    yield "steps", ([prefs, "--max-steps", "0"], "--max-steps")
    yield "both", ([prefs, "--max-steps", "1", "--epochs", "2"], "--epochs")
    yield "ineffective", ([prefs, "--loss-type", "sft", "--beta", "0.2"], "--beta has no effect with --loss-type sft")
    yield "smoothing", ([prefs, "--label-smoothing", "0.1"], "--label-smoothing has no effect")
    yield "half", ([prefs, "--loss-type", "cdpo", "--label-smoothing", "0.5"], "expected a number from 10^-6 to 0.499")
    yield "sizes with init", ([prefs, "--init", init, "--n-layer", "2"], "--n-layer")
    yield "reference alone", ([prefs, "--reference", init], "--reference")
    yield "shard alone", ([prefs, "--shard"], "--shard has no effect in one process: torchrun starts more")
    yield "heads", ([prefs, "--n-embd", "10", "--n-head", "3"], "--n-embd 10")
    yield "length", ([prefs, "--init", init, "--max-length", "49"], "--max-length 49: the policy has only 48 positions")
    yield "prompt length", ([prefs, "--max-length", "8", "--max-prompt-length", "8"], "--max-prompt-length")
    yield "vocabulary", ([prefs, "--init", init, "--tokenizer", wide(tmp_path)], "--tokenizer makes 258 token ids")
    yield "no tokenizer", ([prefs, "--init", naked], "--tokenizer")
    yield "tokenizer", ([prefs, "--tokenizer", "word"], "word")
    yield "no model", ([prefs, "--init", tmp_path / "none"], "none")
    yield "other shape", ([prefs, "--init", damaged], "tensor")
    yield "holds a run", ([prefs, "--out", old], "already holds a run")
    yield "out is a model", ([prefs, "--out", init], "already holds a run or a model (config.json)")
    yield "out holds the init", ([prefs, "--init", init, "--out", init.parent], "already holds a run")
    yield "resume a model", ([prefs, "--out", init, "--resume"], "is not a run's, but a model's")
    yield "too many layers", ([prefs, "--n-layer", "9" * 20], "--n-layer: expected a whole number from 1 to 10^5")
    yield "learning rate", ([prefs, "--learning-rate", "1e38"], "--learning-rate: expected a number from 10^-12 to 10")
    yield "long name", ([prefs, "--out", tmp_path / ("x" * 300)], "--out")
    yield "nothing to resume", ([prefs, "--resume"], "holds no run")
    yield "out is a file", ([prefs, "--out", tmp_path / "file" / "run"], "--out")
    if not torch.cuda.is_available():
        yield "device", ([prefs, "--device", "cuda"], "--device cuda is not there; this machine has")


def wide(tmp_path):
    """A tokenizer of one id more than the model knows."""
    (tmp_path / "wide").mkdir()
    tokenizer = load_tokenizer("bytes")
    tokenizer.ranks[b"ab"] = 257
    type(tokenizer)(tokenizer.ranks, 256).save(tmp_path / "wide")
    return tmp_path / "wide"


def test_bad_input_ends_with_one_clear_line_and_exit_code_2_and_writes_nothing(
    tmp_path, prefs, init, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, (argv, named) in broken(tmp_path, prefs, init):
        before = sorted(tmp_path.rglob("*"))
        out = [] if "--out" in argv else ["--out", tmp_path / "new"]
        with pytest.raises(SystemExit) as stopped:
            fit("--data", *argv, *out)
        error = capsys.readouterr().err
        assert stopped.value.code == 2, name
        assert error.count("\n") == 1 and ": error: " in error, (name, error)
        assert named in error, (name, error)
        assert sorted(tmp_path.rglob("*")) == before, name


def test_one_broken_row_of_10_000_is_named_before_pytorch_is_imported(tmp_path):
    lines = [json.dumps(row) for row in rows(10_000)]
    lines[7112] = lines[7112][:-1]
    (tmp_path / "prefs.jsonl").write_text("\n".join(lines))
    flags = ["--data", tmp_path / "prefs.jsonl", "--out", tmp_path / "o"]
    command = [sys.executable, "-X", "importtime", "train.py", *flags]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 2
    assert "prefs.jsonl:7113: not JSON" in shown.stderr
    assert "| torch" not in shown.stderr and "Traceback" not in shown.stderr
    assert not (tmp_path / "o").exists()


def test_the_names_that_the_command_offers_are_the_losses_there_are():
    assert list(LOSSES) == LOSS_NAMES
    assert [name for name, loss in MARGIN_LOSSES.items() if loss.smoothing] == SMOOTHED
    for name, loss in LOSSES.items():
        smoothing = {"label_smoothing": ROWS[name].smoothing} if ROWS[name].smoothing else {}
        assert (loss.reference, loss.reduce, loss.arguments) == (*ROWS[name][:2], ROWS[name].arguments | smoothing)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_rows(tmp_path, prefs, init, capsys):
    stage, pairs = make_stage(init, prefs, tmp_path)
    with torch.no_grad():
        stage.policy.wte.weight[ord("a")] = torch.nan  # rows 0, 7, 14 … have no "a" on the chosen side
    with pytest.raises(FloatingPointError, match=r"^step 1: the loss is nan on .*prefs\.jsonl:\d+"):
        stage.fit(pairs, [], "sigmoid")
    assert not list(tmp_path.glob("checkpoint/*"))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path, prefs, init):
    stage, pairs = make_stage(init, prefs, tmp_path)
    stage.policy.wpe.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = {name: tensor.clone() for name, tensor in stage.policy.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"^step 1: the gradient is (nan|inf) on .*prefs\.jsonl:\d+"):
        stage.fit(pairs, [], "sigmoid")
    assert equal(before, stage.policy.state_dict())


def test_trouble_in_the_middle_is_one_line_with_exit_code_1(capsys):
    def trouble():
        raise FloatingPointError("step 3: the loss is nan on prefs.jsonl:7")

    with pytest.raises(SystemExit) as stopped:
        program.guard(trouble)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.endswith("error: step 3: the loss is nan on prefs.jsonl:7\n")
