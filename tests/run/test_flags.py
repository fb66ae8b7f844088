"""No flag without effect: every flag of train.py, under every loss, changes what is computed, or is refused."""

from dataclasses import fields

import pytest
import torch

import train
from dpo_min.data.tokenizer import Tokenizer, load_tokenizer
from dpo_min.model.adapter import save_adapter
from dpo_min.model.gpt import GPT, Block, GPTConfig
from dpo_min.model.lora import adapted, add_lora
from dpo_min.run import session
from dpo_min.run.job import prepare
from dpo_min.run.loss_flags import PARAMETERS, ROWS, SMOOTHED
from dpo_min.run.train_flags import TrainFlags
from tests.training import metrics, write

# A loss of every kind: of the margin, with ε, with facts, with a shift, without a reference, with tokens of its own.
LOSSES = ["sigmoid", "cdpo", "rpo", "bco", "cpo", "simpo", "ld", "sft"]
SCRATCH = ["n_layer", "n_head", "n_embd", "block_size", "sft_steps", "sft_data"]  # without --init alone


def rows(n, mark):
    """n preferences of unequal lengths, longer than the runs' --max-length."""
    return [
        {"prompt": f"{mark} question number {i}:", "chosen": f" {'a' * (i % 7)}!!", "rejected": f" {'b' * (i % 5)}?"}
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the flags name: data, models, a tokenizer of other ids."""
    place = tmp_path_factory.mktemp("flags")
    for name, n in (("data", 12), ("other", 9)):
        write(place / f"{name}.jsonl", rows(n, name))
    (place / "bad.jsonl").write_text((place / "data.jsonl").read_text() + "not json\n")
    for name, renamed in (("title", "prompt"), ("good", "chosen"), ("worse", "rejected"), ("context", "")):
        named = [{name if k == renamed else k: v for k, v in row.items()} for row in rows(12, "data")]
        named = named if renamed else [row | {"context": "a story"} for row in named]
        write(place / f"{name}.jsonl", named)
    write(place / "ties.jsonl", [row | {"tie": i % 3 == 0} for i, row in enumerate(rows(12, "data"))])
    tokenizer = load_tokenizer("bytes")
    for seed, name in enumerate(("init", "reference")):
        model = GPT(GPTConfig(257, 32, 1, 2, 8), torch.Generator().manual_seed(seed))
        session.save_model_directory(model, tokenizer, place / name)
    add_lora(model, 2, 4.0)
    for layer in adapted(model).values():
        layer.lora_B.data.fill_(0.1)
    save_adapter(model, place / "adapter", place / "init")
    (place / "reversed").mkdir()
    Tokenizer({bytes([b]): 255 - b for b in range(256)}, 256).save(place / "reversed")
    return place


def values(place, loss_type):
    """Field → the flag's value, and what else the command needs for the flag to be looked at alone."""
    other_loss = LOSSES[LOSSES.index(loss_type) - 1]
    return {
        "data": (place / "other.jsonl", {}),
        "eval_data": (place / "other.jsonl", {"eval_fraction": None}),
        "eval_fraction": (0.6, {}),
        "sft_data": (place / "other.jsonl", {}),
        "skip_bad_rows": (True, {"data": place / "bad.jsonl"}),
        "ties": ("half", {"data": place / "ties.jsonl"}),
        "template": ("hh", {}),
        "system": ("Be kind.", {"template": "hh"}),
        "prompt_column": ("title", {"data": place / "title.jsonl"}),
        "chosen_column": ("good", {"data": place / "good.jsonl"}),
        "rejected_column": ("worse", {"data": place / "worse.jsonl"}),
        "ignore_columns": ("context", {"data": place / "context.jsonl"}),
        "init": (place / "reference", {}),
        "adapter": (place / "adapter", {}),
        "reference": (place / "reference", {}),
        "reference_refresh": (1, {}),
        "reference_alpha": (0.2, {"reference_refresh": 1} if loss_type in ROWS and ROWS[loss_type].reference else {}),
        "tokenizer": (place / "reversed", {}),
        "out": (place / "elsewhere" / loss_type, {}),
        "loss_type": (other_loss, {}),
        "beta": (0.3, {}),
        "label_smoothing": (0.3, {}),
        "wpo": (True, {}),
        **{f"loss_{name}": (0.3, {}) for name in PARAMETERS},
        "reduce": ("mean", {}),
        "epochs": (2.0, {}),
        "max_steps": (1, {}),
        "sft_steps": (2, {}),
        "batch_size": (3, {}),
        "micro_batch_size": (1, {}),
        "lora": (2, {}),
        "lora_alpha": (3, {"lora": 2}),
        "lora_targets": ("attn.c_proj", {"lora": 2}),
        "export": ("adapter", {"lora": 2}),
        "learning_rate": (1e-2, {}),
        "warmup_steps": (2, {}),
        "lr_schedule": ("linear", {}),
        "optimizer": ("rmsprop", {}),
        "weight_decay": (1.0, {}),
        "max_grad_norm": (1e-4, {}),
        "max_length": (20, {}),
        "max_prompt_length": (20, {}),
        "n_layer": (2, {}),
        "n_head": (4, {}),
        "n_embd": (16, {}),
        "block_size": (30, {}),
        "dtype": ("bfloat16", {}),
        "device": (next(d for d in ("cuda", "mps") if not getattr(torch, d).is_available()), {}),
        "checkpoint_activations": (True, {}),
        "compile": (True, {}),
        "shard": (True, {}),
        "seed": (1, {}),
        "resume": (True, {}),
        "log_every": (1, {}),
        "eval_every": (1, {}),
        "max_kl": (1.0, {}),
        "save_every": (1, {}),
    }


def observed(place, name, flags):
    """Everything that a run of these flags (name → value) computes and leaves."""
    calls = []

    def note(module, arguments):
        if isinstance(module, GPT | Block):
            calls.append((type(module), tuple(arguments[0].shape), getattr(module, "compiled", None)))

    flags = {"out": place / "runs" / name} | flags  # beside each other, with one cache
    argv = [str(a) for key, value in flags.items() for a in spell(key, value)]
    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        job = prepare(argv)
        config = job.flags
        assert train.train(job) == 0
    finally:
        hook.remove()
    files = sorted(str(path.relative_to(config.out)) for path in config.out.rglob("*"))
    (weights,) = config.outcome.glob("*.safetensors")
    return config.out.parent, files, metrics(config.out), weights.read_bytes(), calls


def spell(name, value):
    """A flag on the command line: alone where that says it, not at all for None."""
    return [] if value is None else ["--" + name.replace("_", "-"), *([] if value is True else [value])]


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_flag_changes_what_is_computed_or_is_refused(place, loss_type, monkeypatch, capsys):
    """Kills: a flag that is parsed and forgotten, under any loss. A new flag fails here until it has a value."""
    monkeypatch.setattr(GPT, "compile", lambda model, dynamic: setattr(model, "compiled", True))  # noted alone
    base = {"data": place / "data.jsonl", "eval_fraction": 0.4, "batch_size": 4, "max_length": 24}
    base |= {"loss_type": loss_type, "learning_rate": 1e-3}
    init = base | {"init": place / "init"}
    scratch = base | {"n_layer": 1, "n_head": 2, "n_embd": 8} | ({} if loss_type == "sft" else {"sft_steps": 1})
    settings = values(place, loss_type)

    def attempt(name, flags):
        """What a run leaves, or the line by which it is refused."""
        try:
            return observed(place, name, flags)
        except SystemExit:
            return capsys.readouterr().err

    assert settings.keys() == {field.name for field in fields(TrainFlags)}
    plain, refused = observed(place, f"{loss_type}-plain", init), set()
    for name, (value, more) in settings.items():
        found = attempt(f"{loss_type}-{name}", init | more | {name: value})
        if isinstance(found, str):
            assert found.count("\n") == 1 and "--" + name.replace("_", "-") in found, found
            refused.add(name)
        else:
            assert found != (attempt(f"{loss_type}-without-{name}", init | more) if more else plain), name
    expected = {*SCRATCH, "device", "shard", "resume"}
    if loss_type not in SMOOTHED:
        expected |= {"label_smoothing"}
    expected |= {f"loss_{name}" for name, losses in PARAMETERS.items() if loss_type not in losses}
    if loss_type == "sft":
        expected |= {"beta", "reduce", "wpo"}
    if loss_type == "sft" or not ROWS[loss_type].reference:
        expected |= {"reference", "reference_refresh", "reference_alpha", "max_kl"}
    if loss_type in ROWS and ROWS[loss_type].reduce:
        expected |= {"reduce"}
    assert refused == expected
    if loss_type not in ("sigmoid", "sft"):  # without --init, where the flags of the first fit apply: twice is enough
        return
    plain = observed(place, f"{loss_type}-from-scratch", scratch)
    for name in SCRATCH[: 4 if loss_type == "sft" else 6]:
        assert observed(place, f"{loss_type}-scratch-{name}", scratch | {name: settings[name][0]}) != plain, name
