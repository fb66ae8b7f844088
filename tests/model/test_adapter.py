"""An adapter in the ecosystem's layout: its names, its orientation and its settings, in both directions."""

import json
import math

import pytest
import torch
import torch.nn as nn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.model.adapter import adapter_fingerprint, load_adapter, save_adapter
from dpo_min.model.adapter_config import adapter_settings
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.llama import Llama, LlamaConfig
from dpo_min.model.lora import adapted, add_lora, merged
from dpo_min.model.safetensors import read_safetensors, write_safetensors

C, V = 8, 11
SIZES = GPTConfig(V, 16, 2, 2, C)
KIN = LlamaConfig(V, 16, 2, 4, C, 12, 2, 4, tied=False, model_type="qwen2")  # biases, grouped queries, a head
TOKENS = torch.randint(V, (2, 9), generator=torch.Generator().manual_seed(0))
# As the ecosystem's library writes it (0.21), without the settings that it leaves at null, {} or false.
THEIRS = {
    "base_model_name_or_path": "gpt2",
    "bias": "none",
    "fan_in_fan_out": True,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": 6,
    "lora_dropout": 0.05,
    "megatron_core": "megatron.core",
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 3,
    "target_modules": ["c_attn"],
    "task_type": "CAUSAL_LM",
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "modules_to_save": None,
}


def base(seed=0):
    return GPT(SIZES, torch.Generator().manual_seed(seed))


def llama(seed=0):
    return Llama(KIN, torch.Generator().manual_seed(seed))


def trained(targets=(), rank=3, alpha=6.0, base=base):
    """A model with an adapter that is far from zero."""
    model, generator = base(), torch.Generator().manual_seed(1)
    add_lora(model, rank, alpha, targets, generator)
    for layer in adapted(model).values():
        layer.lora_B.data.normal_(generator=generator)
    return model


def logits(model):
    with torch.no_grad():
        return model.logits(model(TOKENS))


def theirs(directory, config=None, **changed):
    """An adapter of the ecosystem's making on the first layer of each block: rank 3. Returns its tensors."""
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for i in range(SIZES.n_layer):
        name = f"base_model.model.transformer.h.{i}.attn.c_attn"
        tensors[f"{name}.lora_A.weight"] = torch.randn(3, C, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(3 * C, 3, generator=generator)
    tensors = {k: t for k, t in {**tensors, **changed}.items() if t is not None}
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "adapter_model.safetensors", tensors)
    (directory / "adapter_config.json").write_text(json.dumps({**THEIRS, **(config or {})}))
    return tensors


GPT_TARGETS = [(base, names) for names in ((), ("c_attn",), ("attn.c_proj", "c_fc"), ("h.1.mlp.c_proj",))]
LLAMA_TARGETS = [(llama, names) for names in ((), ("q_proj", "v_proj"), ("mlp.up_proj", "layers.0.self_attn.o_proj"))]


@settings(max_examples=30)
@given(st.sampled_from(GPT_TARGETS + LLAMA_TARGETS), st.integers(1, 2 * C), st.floats(0.01, 100))
@example((base, ()), 8, 16.0)
@example((llama, ()), 8, 16.0)
@example((base, ("attn.c_proj",)), 3, 0.1)
def test_what_is_written_is_read_again_to_the_bit(tmp_path_factory, kind, rank, alpha):
    """Kills: names or targets that mean other layers, α/r written for α, a factor transposed on one of the ways."""
    directory, (make, targets) = tmp_path_factory.mktemp("adapter"), kind
    model, again = trained(targets, rank, alpha, make), make()
    save_adapter(model, directory, "somewhere/base")
    load_adapter(again, directory)
    assert [*adapted(again)] == [*adapted(model)]
    for ours, theirs in zip(adapted(model).values(), adapted(again).values(), strict=True):
        assert torch.equal(ours.lora_A, theirs.lora_A) and torch.equal(ours.lora_B, theirs.lora_B)
        assert theirs.scale == pytest.approx(ours.scale, rel=1e-15)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-6, atol=1e-6)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {n for n in again.state_dict() if "lora" in n}
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somewhere/base" and config["fan_in_fan_out"] == (make is base)
    wanted, prefix = config["target_modules"], "transformer." if make is base else "model."
    names = [prefix + name for name, layer in make().named_modules() if isinstance(layer, nn.Linear) and "." in name]
    chosen = {name for name in names if any(f".{name}".endswith(f".{target}") for target in wanted)}
    assert chosen == {prefix + name for name in adapted(model)}  # as the ecosystem reads target_modules


def layer_names():
    kinds = "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
    return [f"transformer.h.{i}.{kind}" for i in range(SIZES.n_layer) for kind in kinds]


def test_a_llamas_files_are_the_ecosystems(tmp_path):
    save_adapter(trained(rank=3, base=llama), tmp_path, "qwen")
    found = {name: tuple(t.shape) for name, t in read_safetensors(tmp_path / "adapter_model.safetensors").items()}
    extents = {"self_attn.q_proj": (8, 16), "self_attn.k_proj": (8, 8), "self_attn.v_proj": (8, 8)}
    extents |= {"self_attn.o_proj": (16, 8), "mlp.gate_proj": (8, 12), "mlp.up_proj": (8, 12), "mlp.down_proj": (12, 8)}
    expected = {}
    for name, (inside, outside) in extents.items():
        for i in range(KIN.n_layer):
            expected[f"base_model.model.model.layers.{i}.{name}.lora_A.weight"] = (3, inside)
            expected[f"base_model.model.model.layers.{i}.{name}.lora_B.weight"] = (outside, 3)
    assert found == expected
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is False and "q_proj" in config["target_modules"]


def test_the_files_are_the_ecosystems(tmp_path):
    """Kills: GPT-2's transposition applied to the factors; keys under which the ecosystem looks for nothing."""
    save_adapter(trained(rank=3, alpha=6), tmp_path, "gpt2")
    tensors = read_safetensors(tmp_path / "adapter_model.safetensors")
    extents = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    expected = {}
    for name in layer_names():
        inside, outside = extents[name.split(".", 3)[3]]
        expected[f"base_model.model.{name}.lora_A.weight"] = (3, inside)
        expected[f"base_model.model.{name}.lora_B.weight"] = (outside, 3)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config.items() >= {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6}.items()
    assert sorted(config["target_modules"]) == ["c_attn", "c_fc", "c_proj"]


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (None, 2.0), (True, 6 / math.sqrt(3))])
def test_what_the_ecosystem_wrote_is_w_plus_scale_b_a(tmp_path, rslora, scale):
    """Kills: α/r under rank-stabilised LoRA, whose factor is α/√r (arXiv:2312.03732); A taken for B."""
    tensors = theirs(tmp_path, {"use_rslora": rslora})
    model, before = base(), base().state_dict()
    load_adapter(model, tmp_path)
    for name, found in merged(model):
        expected = before[name]
        if name.endswith("attn.c_attn.weight"):
            key = "base_model.model.transformer." + name.removesuffix("weight")
            expected = expected + scale * tensors[key + "lora_B.weight"] @ tensors[key + "lora_A.weight"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(logits(model), logits(base()))


def test_names_without_the_languages_model_head_and_half_precision_are_read(tmp_path):
    """An adapter of the ecosystem's headless class has no `transformer.`; many are stored in bfloat16."""
    tensors = theirs(tmp_path)
    short = {name.replace("transformer.", ""): tensor.bfloat16() for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "adapter_model.safetensors", short)
    model = base()
    load_adapter(model, tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.h[0].attn.c_attn.lora_A, short["base_model.model.h.0.attn.c_attn.lora_A.weight"].float())


@pytest.mark.parametrize(("key", "value"), [
    ("peft_type", "LOHA"),
    ("peft_type", None),
    ("bias", "lora_only"),
    ("use_dora", True),
    ("rank_pattern", {"c_attn": 4}),
    ("alpha_pattern", {"c_attn": 4}),
    ("modules_to_save", ["lm_head"]),
    ("lora_bias", True),
    ("init_lora_weights", "pissa"),
    ("trainable_token_indices", [1]),
    ("layer_replication", [[0, 2]]),
    ("alora_invocation_tokens", [1, 2]),
    ("a_setting_of_next_year", "on"),
    ("r", 0),
    ("r", None),
    ("r", True),
    ("r", "3"),
    ("lora_alpha", 0),
    ("lora_alpha", float("nan")),
    ("lora_alpha", None),
])  # fmt: skip
def test_a_setting_that_computes_something_else_is_refused_by_name(tmp_path, key, value):
    """Kills: a setting that decides the numbers and is not looked at, known or not."""
    theirs(tmp_path, {key: value})
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {key} is"):
        load_adapter(base(), tmp_path)


FIRST = "base_model.model.transformer.h.0.attn.c_attn"


@pytest.mark.parametrize(("changed", "words"), [
    ({f"{FIRST}.lora_A.weight": None}, r"tensor lora_A of h\.0\.attn\.c_attn is missing"),
    ({f"{FIRST}.lora_A.weight": torch.zeros(3, C + 1)}, r"is torch.float32 \[3, 9\], its base needs \[3, 8\]"),
    ({f"{FIRST}.lora_B.weight": torch.zeros(3, 3 * C)}, r"\[3, 24\], its base needs \[24, 3\]"),
    ({f"{FIRST}.lora_A.weight": torch.zeros(4, C)}, r"\[4, 8\], its base needs \[3, 8\]"),
    ({f"{FIRST}.lora_A.weight": torch.zeros(3, C, dtype=torch.int64)}, r"is torch.int64"),
    ({"base_model.model.transformer.h.7.attn.c_attn.lora_A.weight": torch.zeros(3, C)}, "h.7.* belongs to no linear"),
    ({"base_model.model.transformer.wte.lora_embedding_A": torch.zeros(3, V)}, "wte.* belongs to no linear"),
    ({f"{FIRST}.lora_magnitude_vector.weight": torch.zeros(3)}, "magnitude.* belongs to no linear"),
    ({"h.0.attn.c_attn.lora_A.weight": torch.zeros(3, C)}, "appears twice"),
])  # fmt: skip
def test_a_tensor_that_does_not_fit_is_refused_by_name(tmp_path, changed, words):
    """Kills: a layer that is left out in silence, as where the base is another model than the adapter's."""
    theirs(tmp_path, **changed)
    model = base()
    with pytest.raises(ValueError, match=words):
        load_adapter(model, tmp_path)
    assert adapted(model) == {}


def test_what_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        load_adapter(base(), tmp_path)
    theirs(tmp_path)
    write_safetensors(tmp_path / "adapter_model.safetensors", {})
    with pytest.raises(ValueError, match="holds no adapter"):
        load_adapter(base(), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no such file"):
        load_adapter(base(), tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="can hold code"):
        load_adapter(base(), tmp_path)


def test_the_fingerprint_is_of_what_an_adapter_computes(tmp_path):
    """Kills: a hash of paths and dates, or one without α."""
    theirs(tmp_path / "a")
    theirs(tmp_path / "b", {"base_model_name_or_path": "elsewhere", "lora_dropout": 0.0})
    theirs(tmp_path / "c", {"lora_alpha": 7})
    theirs(tmp_path / "d", **{f"{FIRST}.lora_A.weight": torch.zeros(3, C)})
    a, b, c, d = (adapter_fingerprint(tmp_path / name) for name in "abcd")
    assert a == b and len({a, c, d}) == 3
    assert adapter_settings(tmp_path / "c") == (3, 7)
