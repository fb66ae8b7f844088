"""The model directory of each architecture, written by hand beside ours; whatever is damaged is refused by name."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_safetensors import container, json_values, parts

from dpo_min.model import weights
from dpo_min.model.config import GPTConfig, LlamaConfig, RopeScaling
from dpo_min.model.config_json import as_json
from dpo_min.model.safetensors import read_safetensors
from dpo_min.model.weights import MODELS, load_model, model_fingerprint, save_model

GPT2 = GPTConfig(vocab_size=5, block_size=3, n_layer=2, n_head=2, n_embd=4)
LLAMA = LlamaConfig(vocab_size=5, block_size=9, n_layer=2, n_head=4, n_embd=4, n_inner=6, n_kv_head=2, head_size=2)
SIZES = {
    "gpt2": GPT2,
    "gpt2 in other forms": replace(GPT2, n_inner=6, gelu="none", norm_epsilon=1e-6, tied=False),
    "llama": replace(LLAMA, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32)),
    "mistral": replace(LLAMA, model_type="mistral", tied=False),
    "qwen2": replace(LLAMA, model_type="qwen2"),
    "qwen3": replace(LLAMA, model_type="qwen3", bos_token_id=1),
}
# As the ecosystem stores them; GPT-2's projections are input × output.
GPT2_LAYER = {
    "ln_1.weight": "C",
    "ln_1.bias": "C",
    "attn.c_attn.weight": "C 3C",
    "attn.c_attn.bias": "3C",
    "attn.c_proj.weight": "C C",
    "attn.c_proj.bias": "C",
    "ln_2.weight": "C",
    "ln_2.bias": "C",
    "mlp.c_fc.weight": "C I",
    "mlp.c_fc.bias": "I",
    "mlp.c_proj.weight": "I C",
    "mlp.c_proj.bias": "C",
}
LLAMA_LAYER = {
    "input_layernorm.weight": "C",
    "self_attn.q_proj.weight": "Q C",
    "self_attn.k_proj.weight": "K C",
    "self_attn.v_proj.weight": "K C",
    "self_attn.o_proj.weight": "C Q",
    "post_attention_layernorm.weight": "C",
    "mlp.gate_proj.weight": "I C",
    "mlp.up_proj.weight": "I C",
    "mlp.down_proj.weight": "C I",
}
MORE = {
    "qwen2": {"self_attn.q_proj.bias": "Q", "self_attn.k_proj.bias": "K", "self_attn.v_proj.bias": "K"},
    "qwen3": {"self_attn.q_norm.weight": "h", "self_attn.k_norm.weight": "h"},
}


def shapes(config):
    """Name → shape of every tensor in the ecosystem's file of a model."""
    if isinstance(config, GPTConfig):
        prefix, layers, layer = "transformer.", "transformer.h", GPT2_LAYER
        ends = {"wte.weight": "V C", "wpe.weight": "T C", "ln_f.weight": "C", "ln_f.bias": "C"}
    else:
        prefix, layers, layer = "model.", "model.layers", LLAMA_LAYER | MORE.get(config.model_type, {})
        ends = {"embed_tokens.weight": "V C", "norm.weight": "C"}
    named = {prefix + name: letters for name, letters in ends.items()} | ({} if config.tied else {weights.HEAD: "V C"})
    named |= {f"{layers}.{i}.{name}": letters for i in range(config.n_layer) for name, letters in layer.items()}
    h, C = config.head_size, config.n_embd
    sizes = {"V": config.vocab_size, "T": config.block_size, "C": C, "3C": 3 * C, "I": config.n_inner, "h": h}
    sizes |= {"Q": config.n_head * h, "K": config.n_kv_head * h}
    return {name: [sizes[letter] for letter in letters.split()] for name, letters in named.items()}


def random_model(config, seed=0):
    """A float32 model whose parameters are all drawn from N(0, 1), biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    model = MODELS[type(config)](config, generator)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    return model


def stored(model):
    """The ecosystem's name → tensor: under its prefix, and four projections of a layer of GPT-2 transposed."""
    turned = {name for name, letters in GPT2_LAYER.items() if " " in letters}
    prefix = "transformer." if isinstance(model.config, GPTConfig) else "model."
    tensors = {name: t.t() if name.split(".", 2)[-1] in turned else t for name, t in model.state_dict().items()}
    return {name if name == weights.HEAD else prefix + name: tensor for name, tensor in tensors.items()}


def write_directory(directory, config, tensors):
    """A model directory written by hand."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(as_json(config, None)))
    (directory / "model.safetensors").write_bytes(container(*parts(tensors)))
    return directory


def assert_same_model(ours, theirs):
    """Both hold the same bits."""
    assert ours.config == theirs.config
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.view(torch.int32), theirs[name].view(torch.int32)), name


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def config(request):
    """Each architecture, and each of its forms."""
    return request.param


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A model directory whose model.safetensors each example damages anew, starting from the file `whole`."""
    directory = tmp_path_factory.mktemp("damaged")
    save_model(random_model(replace(GPT2, n_layer=1)), directory)
    (directory / "whole").write_bytes((directory / "model.safetensors").read_bytes())
    return directory


# ---- both ways ----

gpt2s = st.builds(
    lambda V, T, L, H, hs, I, tied: GPTConfig(V, T, L, H, H * hs, I, tied=tied),  # noqa: E741
    *(st.integers(1, limit) for limit in (9, 9, 3, 3, 3)),
    st.none() | st.integers(1, 9),
    st.booleans(),
)
llamas = st.builds(
    lambda V, L, K, G, C, I, hs, kind, tied: LlamaConfig(V, 9, L, K * G, C, I, K, 2 * hs, model_type=kind, tied=tied),  # noqa: E741
    *(st.integers(1, limit) for limit in (9, 3, 2, 3, 9, 9, 3)),
    st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    st.booleans(),
)


@settings(max_examples=25)
@given(gpt2s | llamas, st.integers(0, 2**32 - 1))
def test_a_saved_model_comes_back_bit_for_bit(tmp_path_factory, sizes, seed):
    """Kills: a transposition in one direction only (square ones included); −0, NaN payloads or subnormals lost."""
    model, generator = random_model(sizes), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # every bit pattern
        parameter.data.view(torch.int32).random_(-(2**31), 2**31 - 1, generator=generator)
    before = {name: tensor.view(torch.int32).clone() for name, tensor in model.state_dict().items()}
    directory = tmp_path_factory.mktemp("model") / "made" / "here"
    save_model(model, directory)
    assert all(torch.equal(tensor.view(torch.int32), before[name]) for name, tensor in model.state_dict().items())
    loaded = load_model(directory)
    assert_same_model(loaded, model)
    assert all(p.requires_grad and p.is_contiguous() and p.device.type == "cpu" for p in loaded.parameters())
    assert sizes.parameters() == sum(p.numel() for p in loaded.parameters())


def test_the_file_is_the_ecosystems_when_read_by_hand(tmp_path, config):
    """Kills: names of our own; nn.Linear's orientation; a head that is tied stored again."""
    model = random_model(config)
    save_model(model, tmp_path)
    read = read_safetensors(tmp_path / "model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in read.items()} == shapes(config)
    assert all(torch.equal(tensor, read[name]) for name, tensor in stored(model).items())


def test_a_projection_of_gpt2_is_stored_input_by_output(tmp_path):
    """Kills: a square projection left as nn.Linear has it, which no shape would betray."""
    model = random_model(GPT2)
    save_model(model, tmp_path)
    read = read_safetensors(tmp_path / "model.safetensors")
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        layer = model.h[1].get_submodule(name)
        x = torch.eye(layer.in_features)
        torch.testing.assert_close(x @ read[f"transformer.h.1.{name}.weight"] + layer.bias, layer(x))


def test_the_config_has_the_ecosystems_keys(tmp_path):
    """Kills: a key that the ecosystem's class does not read, or dropout switched on by its default."""
    ids = {"bos_token_id": 4, "eos_token_id": 4}
    expected = {
        "gpt2": {"architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
        | {"n_positions": 3, "n_embd": 4, "n_layer": 2, "n_head": 2, "tie_word_embeddings": True, **ids}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "llama": {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 9, "hidden_size": 4, "head_dim": 2}
        | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 6}
        | {"rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": True, "bos_token_id": None}
        | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
        "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None, "tie_word_embeddings": False},
        "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_scaling": None},
        "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "bos_token_id": 1, "eos_token_id": 4},
    }
    expected["llama"]["rope_scaling"]["original_max_position_embeddings"] = 32
    for name, keys in expected.items():
        save_model(random_model(SIZES[name]), tmp_path / name, end_of_text=4)
        found = json.loads((tmp_path / name / "config.json").read_text())
        assert (keys | {"model_type": name, "vocab_size": 5}).items() <= found.items()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("head", [None, "lm_head.weight", "transformer.lm_head.weight"])
@pytest.mark.parametrize("buffers", [False, True])
def test_every_form_of_gpt2_file_is_read_as_float32(tmp_path, dtype, prefix, head, buffers):
    """Kills: bfloat16 read as float16; a prefix taken for granted; causal-mask buffers taken for parameters."""
    model = random_model(GPT2).to(dtype)
    tensors = {name if prefix else name.removeprefix("transformer."): t for name, t in stored(model).items()}
    if buffers:
        for i in range(2):
            tensors[f"{'transformer.' * prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
            tensors[f"{'transformer.' * prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    if head:
        tensors[head] = model.wte.weight.data
    assert_same_model(load_model(write_directory(tmp_path, GPT2, tensors)), model.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("head", ["not stored", "twice", "alone"])
def test_a_tied_head_may_be_stored_once_twice_or_under_its_own_name(tmp_path, config, dtype, buffers, head):
    """Kills: a head that is looked for in one place; an untied head that a tied one's rules are applied to."""
    model = random_model(config).to(dtype)
    tensors = stored(model)
    if buffers and isinstance(config, LlamaConfig):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(1)
    if config.tied and head != "not stored":
        embedding = next(name for name, letters in shapes(config).items() if letters == [5, 4])
        tensors[weights.HEAD] = tensors[embedding] if head == "twice" else tensors.pop(embedding)
    assert_same_model(load_model(write_directory(tmp_path, config, tensors)), model.float())


def test_a_loaded_model_does_not_hang_on_its_file(tmp_path, config):
    """Kills: parameters that are views of the memory map."""
    save_model(random_model(config), tmp_path)
    file, model = tmp_path / "model.safetensors", load_model(tmp_path)
    size = file.stat().st_size
    file.write_bytes(bytes(size))
    assert_same_model(model, random_model(config))
    model.requires_grad_(False).head_weight.fill_(1)
    assert file.read_bytes() == bytes(size)


def test_saving_again_replaces_the_model(tmp_path):
    save_model(random_model(SIZES["qwen2"]), tmp_path)
    save_model(random_model(GPT2, seed=1), tmp_path)
    assert_same_model(load_model(tmp_path), random_model(GPT2, seed=1))
    names = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_the_ecosystems_samplers_are_told_which_token_ends_a_text(tmp_path):
    """Kills: an end-of-text that only config.json names, which newer samplers do not ask."""
    for name, bos in (("gpt2", 4), ("llama", None), ("qwen3", 1)):
        save_model(random_model(SIZES[name]), tmp_path, end_of_text=4)
        generation = json.loads((tmp_path / "generation_config.json").read_text())
        assert generation == {"bos_token_id": bos, "eos_token_id": 4, "pad_token_id": 4}


# ---- shards ----


def write_shards(directory, config=GPT2, weight_map=None):
    """A model in two files and their index; returns the weight map."""
    tensors = stored(random_model(config))
    shards = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(tensors)}
    write_directory(directory, config, tensors)
    (directory / "model.safetensors").unlink()
    for shard in set(shards.values()):
        part = {name: tensor for name, tensor in tensors.items() if shards[name] == shard}
        (directory / shard).write_bytes(container(*parts(part)))
    index = {"metadata": {"total_size": 0}, "weight_map": shards if weight_map is None else weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return shards


def test_a_sharded_model_is_read(tmp_path, config):
    """Kills: only the first shard read."""
    write_shards(tmp_path, config)
    assert_same_model(load_model(tmp_path), random_model(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.wte.weight": None}, "weight_map must map"),
        ({"transformer.wte.weight": "model-2.safetensors"}, "transformer.wte.weight is not listed for this file"),
        ({"transformer.more": "model-2.safetensors"}, "transformer.more is missing"),
        ({"transformer.more": "model-3.safetensors"}, "model-3.safetensors: no such file"),
        ({"transformer.more": ""}, "no such file"),
        ({"transformer.more": ".."}, "no such file"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path, change, message):
    write_shards(tmp_path, weight_map=write_shards(tmp_path) | change)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(tmp_path)


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path):
    shards = write_shards(tmp_path)
    del shards["transformer.ln_f.bias"]
    write_shards(tmp_path, weight_map=shards)
    with pytest.raises(ValueError, match=r"transformer\.ln_f\.bias is not listed"):
        load_model(tmp_path)


@pytest.mark.parametrize("weight_map", [[], 7, "model-1.safetensors", {"wte.weight": 7}, {"wte.weight": ["a"]}])
def test_an_index_without_a_weight_map_is_refused(tmp_path, weight_map):
    write_shards(tmp_path, weight_map=weight_map)
    with pytest.raises(ValueError, match="weight_map must map tensor names to files"):
        load_model(tmp_path)


@pytest.mark.parametrize("outside", ["../outside.safetensors", "inside/../../outside.safetensors", "{absolute}"])
def test_an_index_cannot_reach_outside_its_directory(tmp_path, outside):
    """Kills: `directory / shard` opened as it stands. The file outside is a valid one."""
    inside = tmp_path / "inside"
    shards = write_shards(inside)
    (inside / "model-1.safetensors").rename(tmp_path / "outside.safetensors")
    outside = outside.format(absolute=tmp_path / "outside.safetensors")
    write_shards(inside, weight_map={name: outside if "1" in shard else shard for name, shard in shards.items()})
    with pytest.raises(ValueError, match="not a file in the same directory"):
        load_model(inside)


# ---- damage ----


@given(st.data())
def test_a_file_cut_anywhere_is_refused(damaged, data):
    """Kills: tensors read as far as they go."""
    raw = (damaged / "whole").read_bytes()
    cut = data.draw(st.one_of(st.sampled_from([0, 7, 8, len(raw) - 1]), st.integers(0, len(raw) - 1)))
    (damaged / "model.safetensors").write_bytes(raw[:cut])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(damaged)


@settings(max_examples=300)
@given(st.data())
def test_flipped_bytes_in_the_header_are_refused_or_harmless(damaged, data):
    """Kills: any error of Python, numpy or torch that a damaged header reaches."""
    raw = bytearray((damaged / "whole").read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, header - 1), st.integers(0, 255)), max_size=4)):
        raw[place] = byte
    (damaged / "model.safetensors").write_bytes(raw)
    try:
        model = load_model(damaged)
    except ValueError as error:
        assert str(damaged) in str(error)  # noqa: PT017
    else:
        assert model.logits(model(torch.zeros(1, 3, dtype=torch.long))).shape == (1, 3, 5)


GPT2_WRONG = [
    ("transformer.h.1.ln_2.bias", None, "h.1.ln_2.bias is missing"),
    ("transformer.wte.weight", None, "wte.weight is missing"),
    ("transformer.h.2.ln_1.bias", torch.zeros(4), "unexpected tensor h.2.ln_1.bias"),
    ("h.1.attn.c_attn.bias", torch.zeros(12), "h.1.attn.c_attn.bias appears twice, with and without transformer."),
    ("transformer.h.1.attn.c_attn.weight", torch.zeros(12, 4), "h.1.attn.c_attn.weight has shape [12, 4]"),
    ("transformer.h.0.mlp.c_fc.weight", torch.zeros(64), "c_fc.weight has shape [64], config.json asks for [4, 16]"),
    ("transformer.h.0.mlp.c_fc.weight", torch.zeros(4, 16, 1), "h.0.mlp.c_fc.weight has shape [4, 16, 1]"),
    ("transformer.wpe.weight", torch.zeros(4, 4), "wpe.weight has shape [4, 4], config.json asks for [3, 4]"),
    ("transformer.ln_f.bias", torch.zeros(()), "ln_f.bias has shape []"),
    ("transformer.ln_f.weight", torch.ones(4, dtype=torch.long), "ln_f.weight is torch.int64, not floating point"),
    ("transformer.ln_f.weight", torch.ones(4, dtype=torch.bool), "ln_f.weight is torch.bool, not floating point"),
    ("lm_head.weight", torch.zeros(5, 4), "lm_head.weight differs from wte.weight"),
    ("lm_head.weight", torch.zeros(4, 4), "lm_head.weight differs from wte.weight"),
]
LLAMA_WRONG = [
    ("mistral", "lm_head.weight", None, "lm_head.weight is missing"),
    ("llama", "lm_head.weight", torch.zeros(5, 4), "lm_head.weight differs from embed_tokens.weight"),
    ("llama", "model.layers.1.self_attn.k_proj.weight", torch.zeros(8, 4), "[8, 4], config.json asks for [4, 4]"),
    ("llama", "model.layers.1.self_attn.q_proj.bias", torch.zeros(8), "unexpected tensor layers.1.self_attn.q_proj"),
    ("qwen2", "model.layers.1.self_attn.v_proj.bias", None, "layers.1.self_attn.v_proj.bias is missing"),
    ("qwen3", "model.layers.0.self_attn.k_norm.weight", None, "layers.0.self_attn.k_norm.weight is missing"),
    ("qwen3", "score.weight", torch.zeros(2, 4), "unexpected tensor score.weight"),
    ("mistral", "model.layers.0.mlp.gate_proj.weight", torch.zeros(6, 4).byte(), "is torch.uint8, not floating point"),
]


@pytest.mark.parametrize(
    ("kind", "name", "tensor", "message"), [*(("gpt2", *wrong) for wrong in GPT2_WRONG), *LLAMA_WRONG]
)
def test_tensors_that_are_not_the_configs_are_refused_by_name(tmp_path, kind, name, tensor, message):
    tensors = stored(random_model(SIZES[kind])) | {name: tensor}
    write_directory(tmp_path, SIZES[kind], {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


SIZE_KEYS = {
    "gpt2": {"vocab_size": 5, "n_positions": 3, "n_embd": 4, "n_layer": 2, "n_inner": 16},
    "qwen2": {"vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 2, "intermediate_size": 6, "head_dim": 2},
}


@pytest.fixture(scope="module", params=SIZE_KEYS)
def saved(request, tmp_path_factory):
    """(a model directory, its sizes by the keys of its config.json, the text of that)."""
    directory = tmp_path_factory.mktemp("saved")
    save_model(random_model(SIZES[request.param]), directory)
    return directory, SIZE_KEYS[request.param], (directory / "config.json").read_text()


@given(st.data())
def test_a_config_with_any_other_size_is_refused(saved, data):
    """Kills: a network of config.json's size built before its tensors are looked at. A billion layers never end."""
    directory, right, text = saved
    key = data.draw(st.sampled_from(sorted(right)))
    extremes = st.sampled_from([10**9, 2**62, 10**30, 2**40, 10**400, 0, -4])
    value = data.draw(st.integers(1, 6) | extremes | st.integers(1, 10**30) | json_values)
    (directory / "config.json").write_text(json.dumps(json.loads(text) | {key: value}))
    if (type(value) is int and value == right[key]) or (value is None and key in ("n_inner", "rope_scaling")):
        assert load_model(directory).config.vocab_size == 5
    else:
        with pytest.raises(ValueError, match=re.escape(str(directory))):
            load_model(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_directory_without_one_of_its_files_is_refused_with_the_name(tmp_path, name):
    save_model(random_model(GPT2), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=re.escape(name)):
        load_model(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=re.escape(name)):
        load_model(tmp_path)


def test_a_header_far_beyond_what_the_config_asks_for_is_not_parsed(tmp_path, monkeypatch):
    """12 MB of header take seconds and gigabytes. Kills: a limit that is the same for every size."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    write_directory(tmp_path, GPT2, {})
    header = json.dumps({f"t{i}": empty for i in range(20_000)}).encode()
    (tmp_path / "model.safetensors").write_bytes(container(header, b""))
    monkeypatch.setattr("dpo_min.model.safetensors.parse_header", None)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*no room for its header"):
        load_model(tmp_path)


def test_layers_without_tensors_are_not_built(tmp_path, monkeypatch):
    """Kills: a network of config.json's depth made before its tensors are counted."""
    save_model(random_model(GPT2), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    monkeypatch.setattr(weights, "MODELS", {GPTConfig: weights.GPT})
    monkeypatch.setattr(weights.GPT, "__init__", None)
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layer": 999}))
    with pytest.raises(ValueError, match=r"999 layers by config\.json, but only 28 tensors"):
        load_model(tmp_path)


# ---- the fingerprint ----


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gpt2", {"n_head": 4}),
        ("gpt2", {"gelu": "none"}),
        ("gpt2", {"norm_epsilon": 1e-6}),
        ("llama", {"n_head": 2, "n_kv_head": 1, "head_size": 4}),
        ("llama", {"rope_theta": 1e4}),
        ("llama", {"rope_scaling": None}),
        ("llama", {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 33)}),
        ("mistral", {"norm_epsilon": 1e-6}),
    ],
)
def test_the_fingerprint_follows_what_no_tensor_shows(kind, change):
    """Two networks of the same tensors compute other numbers. Kills: a hash of the tensors alone."""
    model, other = random_model(SIZES[kind]), random_model(replace(SIZES[kind], **change))
    other.load_state_dict(model.state_dict())
    assert model_fingerprint(model) != model_fingerprint(other)


def test_the_fingerprint_is_that_of_the_saved_model_and_follows_every_tensor(tmp_path, config):
    """Kills: a hash of objects' addresses; a tensor left out; a begin-of-text that decides."""
    model = random_model(config)
    save_model(model, tmp_path, end_of_text=4)
    whole = model_fingerprint(model)
    assert model_fingerprint(load_model(tmp_path)) == whole
    for parameter in model.parameters():
        with torch.no_grad():
            first = parameter.view(-1)[0].clone()
            parameter.view(-1)[0] += 1
            assert model_fingerprint(model) != whole
            parameter.view(-1)[0] = first
    assert model_fingerprint(model) == whole


# ---- the ecosystem's logits ----


def test_the_nine_models_of_the_ecosystem_have_its_logits(shared_data, tmp_path):
    """GPT-2 with its own width and the exact GELU; Llama plain, tied, with its own head size and with scaled rotations;
    Mistral in six files; Qwen2 and Qwen3. Saved and loaded again they are the same.
    """
    directories = sorted((shared_data / "oracles").iterdir())
    assert len(directories) == 9
    for directory in directories:
        expected, model = read_safetensors(directory / "expected.safetensors"), load_model(directory)
        with torch.no_grad():
            logits = model.logits(model(expected["tokens"]))
        scale = expected["logits"].abs().max().item()
        torch.testing.assert_close(logits, expected["logits"], rtol=1e-5, atol=1e-5 * scale, msg=directory.name)
        assert model.config.parameters() == sum(p.numel() for p in model.parameters())
        save_model(model, tmp_path / directory.name, end_of_text=2)
        assert_same_model(load_model(tmp_path / directory.name), model)


def test_loading_draws_no_weights_and_loads_no_compiler(tmp_path, tiny_gpt, tiny_llama):
    """On the device of shapes alone a draw imports torch._dynamo, which takes a second or more."""
    for name, model in (("gpt", tiny_gpt), ("llama", tiny_llama)):
        save_model(model, tmp_path / name)
    code = "import sys; from dpo_min.model.weights import load_model; [*map(load_model, sys.argv[1:])]"
    code += "; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tmp_path / "gpt", tmp_path / "llama"], check=True)
