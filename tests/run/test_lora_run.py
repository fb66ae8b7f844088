"""LoRA through the command line: where a run begins, what it holds, what it leaves, and that it goes on to the bit."""

import json
import signal
from pathlib import Path

import pytest
import torch

import train
from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.judge.scoring import log_ratios
from dpo_min.model.adapter import load_adapter
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.lora import adapted, adapters_off, add_lora, merged
from dpo_min.model.safetensors import read_safetensors, write_safetensors
from dpo_min.model.weights import load_model
from dpo_min.run import models, stored_reference
from dpo_min.run.contents import Reader
from dpo_min.run.session import save_model_directory
from dpo_min.run.train_flags import TrainFlags
from tests.training import LOG_2, TINY, equal, fit, metrics, rows, write

pytestmark = pytest.mark.usefixtures("quickly")

ROOT = Path(train.__file__).parent
SIZES = GPTConfig(257, 48, 2, 2, 16)
TRAINED = 2 * 3 * (16 + 48 + 16 + 16 + 16 + 64 + 64 + 16)  # two blocks, rank 3


def adapter(directory):
    return read_safetensors(directory / "adapter_model.safetensors")


def close(model, other):
    """Whether two models have the same weights up to rounding."""
    a, b = model.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)
    return True


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Preferences of unequal lengths, a model that might be a pretrained one, and one with bfloat16's numbers."""
    place = tmp_path_factory.mktemp("lora")
    write(place / "prefs.jsonl", rows(40))
    for seed, name in enumerate(("init", "other")):
        generator = torch.Generator().manual_seed(seed)
        model = GPT(SIZES, generator)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        save_model_directory(model, load_tokenizer("bytes"), place / name)
    save_model_directory(model, load_tokenizer("bytes"), place / "bfloat16")
    file = place / "bfloat16" / "model.safetensors"
    write_safetensors(file, {name: tensor.bfloat16() for name, tensor in read_safetensors(file).items()})
    return place


@pytest.fixture
def lora(place, tmp_path):
    """(the flags of a short run of rank 3, where runs go)."""
    flags = ["--data", place / "prefs.jsonl", "--init", place / "init", "--lora", 3, "--learning-rate", 0.01]
    return [*flags, "--batch-size", 8, "--micro-batch-size", 4, "--log-every", 1, "--eval-every", 2], tmp_path


# ---- where a run begins ----


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(("dtype", "init"), [("float32", "init"), ("bfloat16", "init"), ("bfloat16", "bfloat16")])
def test_step_0_has_no_reward_yet_a_gradient(place, lora, dtype, init, live, monkeypatch):
    """Kills: a reference that is asked with the adapter on, or in another precision than the policy."""
    flags, out = lora
    if live:
        monkeypatch.setattr(TrainFlags, "stores_reference", False)
    assert fit(*flags, "--init", place / init, "--dtype", dtype, "--max-steps", 2, "--out", out / "run") == 0
    lines = metrics(out / "run")
    for line in lines[:2]:  # the held-out rows, and the first step's own
        assert line["loss"] == pytest.approx(LOG_2, abs=1e-7)
        assert line["rewards/chosen"] == line["rewards/rejected"] == line["rewards/margins"] == 0
    assert lines[1]["grad_norm"] > 0 and lines[2]["loss"] != lines[1]["loss"]


def test_the_stored_reference_is_the_live_one_and_that_of_a_full_run(lora, monkeypatch):
    """Kills: a cache under the hash of the adapter, which every run would have to itself; one scored with it on."""
    flags, out = lora
    full = [flag for flag in flags if flag not in ("--lora", 3)]
    assert fit(*full, "--max-steps", 3, "--out", out / "full") == 0
    with monkeypatch.context() as patch:
        patch.setattr(stored_reference.ReferenceLogps, "find", never_missing(stored_reference.ReferenceLogps.find))
        assert fit(*flags, "--max-steps", 3, "--out", out / "cached") == 0
    monkeypatch.setattr(TrainFlags, "stores_reference", False)
    assert fit(*flags, "--max-steps", 3, "--out", out / "live") == 0
    assert metrics(out / "cached") == metrics(out / "live")
    assert equal(adapter(out / "cached" / "adapter"), adapter(out / "live" / "adapter"))


def never_missing(find):
    """`find`, but everything that is looked for must be there."""

    def found(self, digests):
        places, there = find(self, digests)
        assert there.all()
        return places, there

    return found


def test_one_model_is_loaded_and_two_only_where_another_is_named(place, lora, monkeypatch):
    """Kills: a second network for a reference that is the first one with its adapter off."""
    flags, out = lora
    loaded, load = [], models.load_model
    monkeypatch.setattr(models, "load_model", lambda path: loaded.append(path) or load(path))
    assert fit(*flags, "--max-steps", 1, "--out", out / "own") == 0
    assert loaded == [place / "init"]
    assert fit(*flags, "--max-steps", 1, "--out", out / "other", "--reference", place / "other") == 0
    assert loaded[1:] == [place / "init", place / "other"]
    full = [flag for flag in flags if flag not in ("--lora", 3)]
    assert fit(*full, "--max-steps", 1, "--out", out / "full", "--reference", place / "other") == 0
    assert metrics(out / "other")[0] == metrics(out / "full")[0] != metrics(out / "own")[0]


# ---- what it holds ----


def test_a_checkpoint_holds_the_adapter_and_its_moments_alone(lora):
    """Kills: the base in every checkpoint; a moment of what is not trained."""
    flags, out = lora
    assert fit(*flags, "--max-steps", 2, "--out", out / "run") == 0
    path = out / "run" / "checkpoint" / "step-00000002"
    entries = Reader(path).read_metadata().state_dict_metadata
    assert all(".lora_A" in name or ".lora_B" in name for name in entries)
    held = sum(entry.size.numel() for entry in entries.values() if len(entry.size))
    assert held == 3 * TRAINED  # A and B, and AdamW's two moments of each


def test_the_base_is_left_to_the_bit(place, lora):
    """Kills: weight decay, clipping or a merge that reaches what is frozen."""
    flags, out = lora
    assert fit(*flags, "--weight-decay", 1, "--lora-targets", "c_fc", "--max-steps", 3, "--out", out / "run") == 0
    before, after = (load_model(path).state_dict() for path in (place / "init", out / "run" / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"h.0.mlp.c_fc.weight", "h.1.mlp.c_fc.weight"}


def test_kl_of_the_adapter_is_that_of_the_two_models_that_it_stands_for():
    """Kills: the KL between a policy and itself."""
    policy = GPT(SIZES, torch.Generator().manual_seed(0)).double()
    plain, merged_policy = GPT(SIZES).double(), GPT(SIZES).double()
    plain.load_state_dict(policy.state_dict())
    add_lora(policy, 3, 6, (), torch.Generator().manual_seed(0))
    for layer in adapted(policy).values():
        layer.lora_B.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    merged_policy.load_state_dict(dict(merged(policy)))
    texts = [[1, 2], [3]], [[4, 5, 6], [7, 8]]
    found, expected = log_ratios(policy, policy, *texts), log_ratios(merged_policy, plain, *texts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.abs().min() > 1e-6


def test_a_run_measures_the_kl_that_the_adapter_makes(lora):
    flags, out = lora
    assert fit(*flags, "--max-kl", 1, "--eval-fraction", 0.2, "--max-steps", 4, "--out", out / "run") == 0
    kl = [line["kl"] for line in metrics(out / "run") if line["split"] == "eval"]
    assert kl[0] == 0 and kl[-1] != 0


# ---- what it leaves ----


def test_model_is_merged_and_adapter_is_the_same_by_itself(place, lora):
    """Kills: an adapter/ of another step, of another scale, or beside weights that are merged already."""
    flags, out = lora
    assert fit(*flags, "--lora-alpha", 5, "--max-steps", 3, "--out", out / "run") == 0
    again = load_adapter(load_model(place / "init"), out / "run" / "adapter")
    model, best = GPT(SIZES), load_model(out / "run" / "best")
    model.load_state_dict(dict(merged(again)))
    assert close(load_model(out / "run" / "model"), model) and best.config == SIZES
    with adapters_off(again):
        model.load_state_dict(dict(merged(again)))
    assert equal(model.state_dict(), load_model(place / "init").state_dict())
    config = json.loads((out / "run" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 5) and config["base_model_name_or_path"] == str(place / "init")


@pytest.mark.parametrize(("export", "left"), [
    (None, {"model", "adapter", "best"}), ("merged", {"model", "best"}), ("adapter", {"adapter", "best"}),
])  # fmt: skip
def test_export_says_what_is_left(place, lora, capsys, export, left):
    flags, out = lora
    more = ["--export", export] if export else []
    assert fit(*flags, *more, "--max-steps", 2, "--out", out / "run") == 0
    assert {path.name for path in (out / "run").iterdir() if path.is_dir()} == {"checkpoint", *left}
    shown = "adapter" if export == "adapter" else "model"
    assert f"done: {out / 'run' / shown}\n" in capsys.readouterr().out
    if export == "adapter":
        load_adapter(load_model(place / "init"), out / "run" / "best")
    else:
        load_model(out / "run" / "best")
    assert fit(*flags, *more, "--max-steps", 3, "--out", out / "run", "--resume") == 0
    assert "best/ is" not in capsys.readouterr().out  # it is whole, and goes on to be the best until it is beaten


def test_without_init_the_first_fit_is_whole_and_the_adapter_is_beside_it(place, tmp_path):
    """Kills: an adapter beside weights that nothing was ever fitted to; a first fit that trains an adapter."""
    out = tmp_path
    argv = ["--data", place / "prefs.jsonl", "--sft-steps", 3, "--max-steps", 2, "--lora", 2, *TINY]
    assert fit(*argv, "--out", out / "run") == 0
    base, model = load_model(out / "run" / "reference"), load_model(out / "run" / "model")
    again = load_adapter(load_model(out / "run" / "reference"), out / "run" / "adapter")
    base_weights, weights = base.state_dict(), model.state_dict()
    assert all(
        torch.equal(weights[n], t) == (not n.endswith("weight") or ".c_" not in n) for n, t in base_weights.items()
    )
    for name, tensor in merged(again):
        torch.testing.assert_close(weights[name], tensor)
    assert metrics(out / "run")[0]["loss"] == pytest.approx(LOG_2, abs=1e-7)
    config = json.loads((out / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(out / "run" / "reference")


def test_imitation_trains_an_adapter_too(place, lora):
    flags, out = lora
    assert fit(*flags, "--loss-type", "sft", "--max-steps", 4, "--out", out / "run") == 0
    losses = [line["loss"] for line in metrics(out / "run") if line["split"] == "eval"]
    assert losses[-1] < losses[0] and len(adapter(out / "run" / "adapter")) == 16


# ---- with --adapter ----


@pytest.mark.parametrize("more", [[], ["--lora", 2, "--lora-targets", "c_attn", "attn.c_proj"]])
def test_the_reference_is_the_base_plus_the_adapter(place, lora, capsys, more):
    """Kills: DPO after an imitated adapter whose reference is the bare base, and rewards what imitation taught."""
    flags, out = lora
    assert fit(*flags, "--loss-type", "sft", "--max-steps", 3, "--out", out / "sft") == 0
    capsys.readouterr()
    argv = ["--data", place / "prefs.jsonl", "--init", place / "init", "--adapter", out / "sft" / "adapter", *more]
    argv += ["--max-steps", 2, "--learning-rate", 0.01, "--out", out / "run"]
    assert fit(*argv) == 0
    said = f"{place / 'init'} plus {out / 'sft' / 'adapter'}, merged: {out / 'run' / 'reference'}\n"
    assert capsys.readouterr().out.count(said) == 1
    reference_model = load_model(out / "run" / "reference")
    assert close(reference_model, load_model(out / "sft" / "model"))
    assert metrics(out / "run")[0]["rewards/margins"] == 0 != metrics(out / "run")[-1]["rewards/margins"]
    # By the base alone, whose bytes are the same on any processor: what is merged is a sum, which is rounded.
    hashes = {json.loads((out / name / "config.json").read_text())["init_sha256"] for name in ("sft", "run")}
    assert len(hashes) == 1
    if more:
        config = json.loads((out / "run" / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(out / "run" / "reference")
        again = load_adapter(reference_model, out / "run" / "adapter")
        assert {name.split(".", 2)[2] for name in adapted(again)} == {"attn.c_attn", "attn.c_proj"}
    assert fit(*argv, "--resume") == 0  # its weights are not merged a second time
    with pytest.raises(SystemExit):
        fit(*argv, "--adapter", out / "run" / "adapter" if more else place / "init", "--resume")
    shown = capsys.readouterr().err
    assert "the adapter in --adapter" in shown if more else "holds no adapter_config.json" in shown


# ---- it goes on ----


class Killed(BaseException):
    """What a kill leaves behind is what this leaves: nothing more is written."""


def test_a_run_that_was_killed_goes_on_to_the_same_adapter(lora, monkeypatch):
    """After a checkpoint, and by Ctrl-C. Kills: moments that are lost, an adapter drawn anew on the way."""
    flags, out = lora
    flags = [*flags, "--max-steps", 6, "--save-every", 2]
    assert fit(*flags, "--out", out / "whole") == 0
    step, count = train.Stage.step, iter(range(1, 100))

    def killed(stage, *arguments):
        number = next(count)
        if number == 4:
            raise Killed
        if number == 6:
            signal.raise_signal(signal.SIGINT)
        return step(stage, *arguments)

    monkeypatch.setattr(train.Stage, "step", killed)
    with pytest.raises(Killed):
        fit(*flags, "--out", out / "run")
    assert fit(*flags, "--out", out / "run", "--resume") == 130  # it stops after step 4, its second here
    assert fit(*flags, "--out", out / "run", "--resume") == 0
    assert equal(adapter(out / "run" / "adapter"), adapter(out / "whole" / "adapter"))
    assert metrics(out / "run") == metrics(out / "whole")


@pytest.mark.parametrize(("change", "words"), [
    (["--lora", 4], "--lora was 3"),
    (["--lora-alpha", 3], "--lora-alpha was 6.0"),
    (["--lora-targets", "c_attn"], "--lora-targets was None"),
    (["--export", "adapter"], "--export was None"),
])  # fmt: skip
def test_another_adapter_is_another_run(lora, capsys, change, words):
    flags, out = lora
    assert fit(*flags, "--max-steps", 1, "--out", out / "run") == 0
    with pytest.raises(SystemExit):
        fit(*flags, *change, "--max-steps", 1, "--out", out / "run", "--resume")
    assert words in capsys.readouterr().err


def test_an_unknown_target_is_refused_before_the_first_fit(place, tmp_path, capsys):
    argv = ["--data", place / "prefs.jsonl", "--lora", 2, "--lora-targets", "c_attn,q_proj", "--out", tmp_path / "run"]
    with pytest.raises(SystemExit):
        fit(*argv)
    assert "--lora-targets: the blocks have no linear layer 'q_proj'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


def test_what_is_stored_is_the_network_with_its_adapter_off_whatever_the_adapter_is(place, tmp_path):
    """Kills: a reference that is the base only as long as nothing was trained."""
    policy, pairs = load_model(place / "init"), [TokenizedPair([i, 3], [i, *[1] * i], [2] * i) for i in range(1, 5)]
    add_lora(policy, 2, 4.0)
    for layer in adapted(policy).values():
        layer.lora_B.data.fill_(0.1)
    flags = TrainFlags(data=[], max_steps=1, lora=2, batch_size=4, device="cpu", learning_rate=1.0)
    stage, batch = train.Stage(flags, policy, policy, tmp_path), pack(pairs)
    assert {p for group in stage.optimizer.param_groups for p in group["params"]} == set(stage.trained)
    assert len(stage.trained) == 16  # two factors of four layers in two blocks
    with torch.no_grad():
        on = batch_logps(policy, batch)
    live = torch.cat(stage.reference_logps(pairs, batch, on))
    stage.store_reference(pairs, pairs, tmp_path, "f00")
    stored = torch.cat(stage.reference_logps(pairs, batch, on))
    torch.testing.assert_close(stored, live, rtol=0, atol=1e-5)
    assert not torch.allclose(stored, on, rtol=0, atol=1e-2)
