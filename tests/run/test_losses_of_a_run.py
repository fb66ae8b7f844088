"""Every loss in the program: each trains on real rows and goes on where it stopped; mixes, lists, thumbs, weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import train
from dpo_min.data.batch import batch_logps, batch_token_logps, pack
from dpo_min.data.judgements import TokenizedAnswers
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.losses import LOSSES
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.ratio_losses import plackett_luce
from dpo_min.run import log, session
from dpo_min.run.job import prepare
from dpo_min.run.loss_flags import OTHERS, PARAMETERS, ROWS, loss_weights
from dpo_min.run.train_flags import TrainFlags, read_flags
from tests.training import fit, metrics, write

pytestmark = pytest.mark.usefixtures("quickly")

ROOT = Path(train.__file__).parent
TINY = ["--n-layer", 1, "--n-head", 2, "--n-embd", 8, "--sft-steps", 1]
STEPS = ["--max-length", 64, "--batch-size", 4, "--micro-batch-size", 2, "--learning-rate", 1e-2, "--log-every", 1]
STEPS += ["--eval-every", 5, "--save-every", 2]


@pytest.fixture(scope="module")
def real(tmp_path_factory, request):
    """Real pairs, as they are and in the other forms; made-up ones where the shared data are not."""
    place = tmp_path_factory.mktemp("real")
    path = Path(__file__).resolve().parents[3] / "shared/data/politeness/train.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": "a" * (1 + i % 7), "rejected": "b" * (1 + i % 5)} for i in range(24)]
    if path.exists():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:24]]
    forms = {
        "pairs": [row | {"offset": i / 10} for i, row in enumerate(rows)],
        "lists": [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], *["?!"] * (i % 2)]}
                  for i, row in enumerate(rows)],
        "thumbs": [{"prompt": row["prompt"], "completion": row["chosen" if i % 3 else "rejected"], "label": i % 3 > 0}
                   for i, row in enumerate(rows)],
    }  # fmt: skip
    return {kind: write(place / f"{kind}.jsonl", some) for kind, some in forms.items()}


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A tiny model of bytes to start from."""
    place = tmp_path_factory.mktemp("init")
    model = GPT(GPTConfig(257, 64, 1, 2, 8), torch.Generator().manual_seed(0))
    session.save_model_directory(model, load_tokenizer("bytes"), place)
    return place


NAMES = [*LOSSES, *OTHERS, "sft", "sigmoid:1,sft:0.1", "nca:0.5,dpop:0.5"]
KEPT = ["bco", "ld", "simpo", "kto", "plackett_luce"]  # what a checkpoint has to hold differs between these


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_trains_on_real_rows_for_five_steps_and_goes_on_to_the_same_weights(tmp_path, real, init, name):
    """Finite, and to the last bit. Kills: a name that is offered and not computed; a shift that is not saved."""
    kind = TrainFlags(data=[], loss_type=name).rows
    base = ["--data", real[kind], "--loss-type", name, "--eval-data", real[kind], "--init", init, *STEPS]
    assert fit(*base, "--max-steps", 5, "--out", tmp_path / "whole") == 0
    found = metrics(tmp_path / "whole", "train")
    assert len(found) == 5 and all(torch.tensor([line["loss"], line["grad_norm"]]).isfinite().all() for line in found)
    assert found[0]["loss"] != found[-1]["loss"]
    if name != "sft":
        assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"} <= found[0].keys()
    if name in KEPT:
        assert fit(*base, "--max-steps", 2, "--out", tmp_path / "parts") == 0
        assert fit(*base, "--max-steps", 5, "--out", tmp_path / "parts", "--resume") == 0
        whole, parts = ((tmp_path / out / "model" / "model.safetensors").read_bytes() for out in ("whole", "parts"))
        assert whole == parts


def test_lists_and_thumbs_begin_with_a_fit_of_their_own_where_no_model_is_given(tmp_path, real):
    """Kills: a first fit that knows pairs alone."""
    for name in ("kto", "orpo"):
        kind, out = TrainFlags(data=[], loss_type=name).rows, tmp_path / name
        argv = ["--data", real[kind], "--eval-data", real[kind], "--loss-type", name, "--max-steps", 1, "--out", out]
        assert fit(*argv, *TINY, *STEPS) == 0
        assert (out / "reference" / "model.safetensors").exists()


@pytest.mark.parametrize("name", [name for name in ROWS if not ROWS[name].reference])
def test_a_loss_without_a_reference_refuses_one_and_stores_none(tmp_path, real, init, name, capsys):
    """Kills: a reference that is loaded, scored, and never read."""
    with pytest.raises(SystemExit):
        prepare(["--data", str(real["pairs"]), "--loss-type", name, "--init", "m", "--reference", "m"])
    assert "--reference has no effect with a --loss-type that has no reference" in capsys.readouterr().err
    argv = ["--data", real["pairs"], "--eval-data", real["pairs"], "--loss-type", name, "--max-steps", 1]
    assert fit(*argv, "--out", tmp_path / "run", "--init", init, *STEPS) == 0
    assert not list(tmp_path.glob("cache/reference-*"))


@pytest.mark.parametrize("parameter", PARAMETERS)
@pytest.mark.parametrize("name", [*LOSSES, *OTHERS, "sft"])
def test_a_parameter_is_taken_by_the_losses_that_have_it_and_refused_by_all_others(parameter, name):
    """Kills: an option that is ignored under another option."""
    argv = ["--data", "x.jsonl", "--loss-type", name, f"--loss-{parameter}", "0.3"]
    if name in PARAMETERS[parameter]:
        flags, _ = read_flags(argv)
        assert getattr(flags, f"loss_{parameter}") == 0.3
    else:
        with pytest.raises(ValueError, match=f"^--loss-{parameter} has no effect except with --loss-type "):
            read_flags(argv)


NO_LOSS = "dpo sigmoid,sigmoid sigmoid:-1 sigmoid:0 sigmoid:nan sigmoid:x sft:1 kto:1 sigmoid:1,".split()
NO_LOSS += [""]
NO_MIX = ["sigmoid,kto", "sigmoid,simpo", "simpo,cpo", "sigmoid,ld", "ld:1,sft:1"]


@pytest.mark.parametrize("text", [*NO_LOSS, *NO_MIX])
def test_a_loss_that_is_none_or_a_mix_that_cannot_be_is_refused_in_one_line_with_the_names(text):
    with pytest.raises(
        ValueError, match=r"--loss-type: expected one of sigmoid, cdpo, .* such as sigmoid:1,s"
    ) as error:
        read_flags(["--data", "x.jsonl", f"--loss-type={text}"])
    assert "\n" not in str(error.value)


def test_a_mix_has_its_weights():
    assert loss_weights("sigmoid:1,sft:0.1") == {"sigmoid": 1.0, "sft": 0.1}
    assert loss_weights("simpo,orpo:2") == {"simpo": 1.0, "orpo": 2.0}


def test_a_new_row_is_a_new_loss_with_its_flags(tmp_path, real, init):
    """One edit. Kills: a list of names or of parameters that has to be kept beside the tables."""
    for name in ("dpo_min", "train.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    rows = {
        "margin_losses": "Loss(lambda h, beta, _: (beta * h - 1) ** 2, lambda h, beta, _: 2 * beta * (beta * h - 1), ",
        "ratio_losses": "RatioLoss(lambda a, b, beta, pull=2.0: b - pull * a, lambda a, b, beta, pull=2.0: (-pull, 1),",
    }
    flags = ["--data", real["pairs"], "--eval-data", real["pairs"], "--max-steps", 2, "--init", init, *STEPS]
    for table, row in rows.items():
        path = tmp_path / "dpo_min" / f"{table}.py"
        text, head = path.read_text(encoding="utf-8"), f"{table.upper()} = {{\n"
        assert text.count(head) == 1
        path.write_text(text.replace(head, f'{head}    "of_{table}": {row}"source", "about"),\n'), encoding="utf-8")
    code = "import sys, train; from dpo_min.run.job import prepare; "
    code += "sys.exit(any(train.train(prepare(argv.splitlines())) for argv in sys.argv[1:]))"
    runs = [[*flags, "--loss-type", f"of_{table}", "--out", table] for table in rows]
    runs[1] += ["--loss-pull", 3]
    commands = ["\n".join(map(str, run)) for run in runs]
    shown = subprocess.run([sys.executable, "-c", code, *commands], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert [len(metrics(tmp_path / table, "train")) for table in rows] == [2, 2]


# What a step's rows decide, and what they do not

IDS = st.lists(st.integers(0, 4), min_size=1, max_size=4)
NARROW = GPT(GPTConfig(vocab_size=5, block_size=24, n_layer=1, n_head=1, n_embd=4), torch.Generator().manual_seed(0))


def gradients(rows, micro_batch_size, loss_type, **flags):
    """Gradients and mean metrics of one step's rows, cut into micro-batches of a size, from moved weights."""
    config = TrainFlags(data=[], micro_batch_size=micro_batch_size, learning_rate=0.1, loss_type=loss_type, **flags)
    policy, reference = GPT(NARROW.config).double(), GPT(NARROW.config).double()
    reference.load_state_dict(NARROW.state_dict())
    policy.load_state_dict({name: tensor + 0.1 for name, tensor in NARROW.state_dict().items()})
    stage = train.Stage(config, policy, reference if config.has_reference else None, None)
    stage.criterion.before_run(rows)
    totals = log.Totals()
    denominator = stage.count_step(rows, totals)
    stage.criterion.before_step(stage, rows)
    for *micro, _ in stage.packed(rows):
        stage.share(*micro, denominator, totals)[0].backward()
    totals.settle()
    return torch.cat([p.grad.flatten() for p in policy.parameters()]), totals.means()


def differ(pair):
    """Whether its answers do, as those of data always do; of equal ones rounding decides which side wins."""
    return pair.chosen_ids != pair.rejected_ids


@pytest.mark.parametrize("name", [*[name for name in ROWS if name not in ("cdpo", "ipo", "hinge")], *OTHERS, "wpo"])
@settings(max_examples=8)
@given(data=st.data(), size=st.integers(1, 4))
def test_micro_batches_of_any_sizes_give_one_gradient_and_one_line_of_metrics(name, data, size):
    """Kills: a shift, a weight or a mean that a micro-batch decides for itself."""
    kind = OTHERS.get(name, "pairs")
    answers = {
        "pairs": st.builds(TokenizedPair, IDS, IDS, IDS, offset=st.floats(-1, 1)).filter(differ),
        "lists": st.builds(TokenizedAnswers, IDS, st.lists(IDS, min_size=2, max_size=4)),
        "thumbs": st.builds(TokenizedAnswers, IDS, st.lists(IDS, min_size=1, max_size=1), st.booleans()),
    }
    rows = data.draw(st.lists(answers[kind], min_size=1, max_size=5))
    flags = {"loss_type": "sigmoid", "wpo": True} if name == "wpo" else {"loss_type": name}
    whole, line = gradients(rows, len(rows), **flags)
    parts, parts_line = gradients(rows, size, **flags)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    assert parts_line == pytest.approx(line, rel=1e-6, abs=1e-9)


def thumb(prompt, answer, label):
    return TokenizedAnswers(prompt, [answer], label)


def test_kto_takes_its_shift_from_every_prompt_with_the_next_ones_answer_and_weighs_the_rarer_thumb_more(tmp_path):
    """Kills: z from matched answers, the larger class raised, the counts of a step in the place of the data's."""
    rows = [thumb([0], [1, 2], True), thumb([3], [4], True), thumb([1], [0, 0], False), thumb([2], [3, 1], True)]
    config = TrainFlags(data=[], learning_rate=0.1, loss_type="kto", micro_batch_size=3)
    policy, reference = GPT(NARROW.config).double(), GPT(NARROW.config).double()
    reference.load_state_dict(NARROW.state_dict())
    policy.load_state_dict({name: 1.5 * tensor for name, tensor in NARROW.state_dict().items()})
    stage = train.Stage(config, policy, reference, None)
    stage.criterion.before_run(rows)
    assert stage.criterion.weights == (3.0, 1.0)
    stage.criterion.before_run(rows[:2])
    assert stage.criterion.weights == (1.0, 1.0)
    stage.criterion.before_step(stage, rows)
    mixed = [TokenizedAnswers(rows[i].prompt_ids, rows[(i + 1) % 4].completions) for i in range(4)]
    with torch.no_grad():
        ratios = batch_logps(policy, pack(mixed)) - batch_logps(reference, pack(mixed))
    assert stage.criterion.z == pytest.approx(max(0.0, ratios.mean().item()), abs=1e-6)


def test_thumbs_log_means_of_each_side_alone(tmp_path):
    """Kills: a mean over all rows of what some rows have."""
    rows = [thumb([0], [1, 2], True), thumb([3], [4], True), thumb([1], [0, 0], False)]
    _, line = gradients(rows, 2, "kto")
    policy, reference = GPT(NARROW.config).double(), NARROW.double()
    policy.load_state_dict({name: tensor + 0.1 for name, tensor in NARROW.state_dict().items()})
    with torch.no_grad():
        rewards = 0.1 * (batch_logps(policy, pack(rows)) - batch_logps(reference, pack(rows)))
    assert line["rewards/chosen"] == pytest.approx(rewards[:2].mean().item(), abs=1e-6)
    assert line["rewards/rejected"] == pytest.approx(rewards[2].item(), abs=1e-6)
    assert line["rewards/margins"] == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"])
    assert not any("#" in name for name in line)


def test_a_list_of_two_trains_as_a_pair_does():
    """Kills: Plackett–Luce on other log-ratios than DPO's."""
    pairs = [TokenizedPair([0], [1, 2], [3]), TokenizedPair([1], [4], [2, 2, 0])]
    lists = [TokenizedAnswers(pair.prompt_ids, list(pair.completions)) for pair in pairs]
    one, pair_line = gradients(pairs, 2, "sigmoid")
    other, list_line = gradients(lists, 2, "plackett_luce")
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    assert list_line == pytest.approx(pair_line, rel=1e-9)


def test_the_loss_of_lists_is_that_of_their_log_ratios():
    rows = [TokenizedAnswers([0], [[1, 2], [3], [4, 4]]), TokenizedAnswers([1], [[4], [2, 2, 0]])]
    _, line = gradients(rows, 2, "plackett_luce", beta=0.7)
    policy = GPT(NARROW.config).double()
    policy.load_state_dict({name: tensor + 0.1 for name, tensor in NARROW.state_dict().items()})
    total = 0.0
    for row in rows:
        with torch.no_grad():
            ratios = batch_logps(policy, pack([row])) - batch_logps(NARROW.double(), pack([row]))
        total += plackett_luce(ratios[None], 0.7, torch.ones(1, len(ratios), dtype=torch.bool)).item()
    assert line["loss"] == pytest.approx(total / 2, rel=1e-6)


@given(st.lists(st.builds(TokenizedPair, IDS, IDS, IDS), min_size=1, max_size=3), st.floats(0, 2))
@example([TokenizedPair([0], [1, 2, 3], [4])], 0.5)
def test_tokens_past_the_shorter_answer_count_alpha(pairs, alpha):
    """LD-DPO, spelled out token by token. Kills: α on the first tokens, on the longer answer of the batch."""
    model = NARROW.double()
    with torch.no_grad():
        found = batch_logps(model, pack(pairs), alpha)
        tokens = batch_token_logps(model, pack(pairs))
    for i, pair in enumerate(pairs):
        shared = min(map(len, pair.completions))
        for side in (0, 1):
            part = tokens[i + side * len(pairs)].tolist()
            expected = sum(logp if t < shared else alpha * logp for t, logp in enumerate(part))
            assert found[i + side * len(pairs)].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.lists(st.builds(TokenizedPair, IDS, IDS, IDS), min_size=1, max_size=3))
def test_wpos_tokens_are_aligned_by_what_the_policy_draws(pairs):
    """Mean of log π(y_t) − log Σ_v π(v)², from full logits. Kills: Σπ for Σπ², a sum over the answer for its mean."""
    model, batch = NARROW.double(), pack(pairs)
    with torch.no_grad():
        found = batch_logps(model, batch, "aligned")
        logits = model.logits(model(batch.tokens, batch.positions, batch.mask)).flatten(0, 1)[batch.predictors]
    logps = logits.log_softmax(-1)
    aligned = logps.gather(1, batch.targets[:, None])[:, 0] - (2 * logps).logsumexp(-1)
    expected = torch.stack([part.mean() for part in aligned.split(batch.lengths.tolist())])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
