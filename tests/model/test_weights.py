"""The model directory: GPT-2's layout, read and written by hand beside ours; whatever is damaged is refused by name."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.model.config_json import load_config
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.weights import (
    MAX_HEADER,
    load_model,
    read_safetensors,
    save_model,
    write_atomically,
    write_safetensors,
)

SIZES = GPTConfig(vocab_size=5, block_size=3, n_layer=2, n_head=2, n_embd=4)
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
LAYER = {  # GPT-2's tensors as stored: projections input × output
    "ln_1.weight": ["C"],
    "ln_1.bias": ["C"],
    "attn.c_attn.weight": ["C", "3C"],
    "attn.c_attn.bias": ["3C"],
    "attn.c_proj.weight": ["C", "C"],
    "attn.c_proj.bias": ["C"],
    "ln_2.weight": ["C"],
    "ln_2.bias": ["C"],
    "mlp.c_fc.weight": ["C", "4C"],
    "mlp.c_fc.bias": ["4C"],
    "mlp.c_proj.weight": ["4C", "C"],
    "mlp.c_proj.bias": ["C"],
}
ENDS = {"wte.weight": ["V", "C"], "wpe.weight": ["T", "C"], "ln_f.weight": ["C"], "ln_f.bias": ["C"]}
EXTENT = {"V": 5, "T": 3, "C": 4, "3C": 12, "4C": 16}
GPT2_SHAPES = {
    name: [EXTENT[extent] for extent in shape]
    for name, shape in [*ENDS.items(), *((f"h.{i}.{name}", shape) for i in range(2) for name, shape in LAYER.items())]
}


def random_gpt(seed=0, sizes=SIZES):
    """A float32 GPT whose parameters are all drawn from N(0, 1), biases too."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(sizes, generator)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    return model


def gpt2_tensors(model):
    """GPT-2's name → tensor, without the prefix: four projections of a layer are transposed."""
    turned = {f"{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    return {name: t.t() if name.split(".", 2)[-1] in turned else t for name, t in model.state_dict().items()}


def parts(tensors):
    """(header, data) of a safetensors file."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    return header, data


def container(header, data):
    """The bytes of a safetensors file; a header of bytes is taken as it is."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def write_directory(directory, tensors, **config):
    """A model directory written by hand."""
    sizes = {"vocab_size": 5, "n_positions": 3, "n_embd": 4, "n_layer": 2, "n_head": 2}
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes, **config}))
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


@pytest.fixture
def saved(tmp_path):
    """The directory of a model that we saved."""
    save_model(random_gpt(), tmp_path, end_of_text=4)
    return tmp_path


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A model directory whose model.safetensors each example damages anew, starting from the file `whole`."""
    directory = tmp_path_factory.mktemp("damaged")
    save_model(random_gpt(sizes=GPTConfig(5, 3, 1, 2, 4)), directory)
    (directory / "whole").write_bytes((directory / "model.safetensors").read_bytes())
    return directory


# ---- both ways ----


@settings(max_examples=30)
@given(
    st.builds(
        lambda vocab_size, block_size, n_layer, n_head, head_size: GPTConfig(
            vocab_size, block_size, n_layer, n_head, n_head * head_size
        ),
        *(st.integers(1, limit) for limit in (9, 9, 3, 3, 3)),
    ),
    st.integers(0, 2**32 - 1),
)
def test_a_saved_model_comes_back_bit_for_bit(tmp_path_factory, sizes, seed):
    """Kills: a transposition in one direction only (square ones included); −0, NaN payloads or subnormals lost."""
    model, generator = random_gpt(sizes=sizes), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # every bit pattern
        parameter.data.view(torch.int32).random_(-(2**31), 2**31 - 1, generator=generator)
    before = {name: tensor.view(torch.int32).clone() for name, tensor in model.state_dict().items()}
    directory = tmp_path_factory.mktemp("model") / "made" / "here"
    save_model(model, directory)
    assert all(torch.equal(tensor.view(torch.int32), before[name]) for name, tensor in model.state_dict().items())
    loaded = load_model(directory)
    assert_same_model(loaded, model)
    assert all(p.requires_grad and p.is_contiguous() and p.device.type == "cpu" for p in loaded.parameters())


def test_the_file_is_gpt2s_when_read_by_hand(saved):
    """Kills: names of our own; nn.Linear's orientation; data that does not start where the header ends."""
    raw = (saved / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {name: entry["shape"] for name, entry in header.items()} == {
        f"transformer.{name}": shape for name, shape in GPT2_SHAPES.items()
    }
    assert length % 8 == 0
    assert sum(end - begin for begin, end in (entry["data_offsets"] for entry in header.values())) == len(data)
    for name, tensor in gpt2_tensors(random_gpt()).items():
        entry = header[f"transformer.{name}"]
        begin, end = entry["data_offsets"]
        assert entry["dtype"] == "F32"
        stored = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
        np.testing.assert_array_equal(stored, tensor.numpy())


def test_a_projection_is_stored_input_by_output(saved):
    """Kills: a square projection left as nn.Linear has it, which no shape would betray."""
    block, stored = random_gpt().h[1], read_safetensors(saved / "model.safetensors")
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        layer = block.get_submodule(name)
        x = torch.eye(layer.in_features)
        torch.testing.assert_close(x @ stored[f"transformer.h.1.{name}.weight"] + layer.bias, layer(x))


def test_the_config_has_gpt2s_keys(saved):
    """Kills: a key that GPT-2's class does not read, or dropout switched on by its default."""
    config = json.loads((saved / "config.json").read_text())
    expected = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 5,
        "n_positions": 3,
        "n_embd": 4,
        "n_layer": 2,
        "n_head": 2,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 4,
        "eos_token_id": 4,
    }
    assert expected.items() <= config.items()
    assert load_config(saved) == SIZES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("head", [None, "lm_head.weight", "transformer.lm_head.weight"])
@pytest.mark.parametrize("buffers", [False, True])
def test_every_form_of_gpt2_file_is_read_as_float32(tmp_path, dtype, prefix, head, buffers):
    """Kills: bfloat16 read as float16; a prefix taken for granted; causal-mask buffers taken for parameters."""
    model = random_gpt().to(dtype)
    tensors = {prefix + name: tensor for name, tensor in gpt2_tensors(model).items()}
    if buffers:
        for i in range(2):
            tensors[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
            tensors[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    if head:
        tensors[head] = model.wte.weight.data
    assert_same_model(load_model(write_directory(tmp_path, tensors)), model.float())


def test_a_loaded_model_does_not_hang_on_its_file(saved):
    """Kills: parameters that are views of the memory map."""
    file, model = saved / "model.safetensors", load_model(saved)
    size = file.stat().st_size
    file.write_bytes(bytes(size))
    assert_same_model(model, random_gpt())
    model.requires_grad_(False).wte.weight.fill_(1)
    assert file.read_bytes() == bytes(size)


# ---- shards ----


def write_shards(directory, weight_map=None):
    """A model in two files and their index; returns the weight map."""
    tensors = {f"transformer.{name}": tensor for name, tensor in gpt2_tensors(random_gpt()).items()}
    shards = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(tensors)}
    write_directory(directory, tensors)
    (directory / "model.safetensors").unlink()
    for shard in set(shards.values()):
        part = {name: tensor for name, tensor in tensors.items() if shards[name] == shard}
        (directory / shard).write_bytes(container(*parts(part)))
    index = {"metadata": {"total_size": 0}, "weight_map": shards if weight_map is None else weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return shards


def test_a_sharded_model_is_read(tmp_path):
    """Kills: only the first shard read."""
    write_shards(tmp_path)
    assert_same_model(load_model(tmp_path), random_gpt())


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
    write_shards(tmp_path, write_shards(tmp_path) | change)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(tmp_path)


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path):
    shards = write_shards(tmp_path)
    del shards["transformer.ln_f.bias"]
    write_shards(tmp_path, shards)
    with pytest.raises(ValueError, match=r"transformer\.ln_f\.bias is not listed"):
        load_model(tmp_path)


@pytest.mark.parametrize("weight_map", [[], 7, "model-1.safetensors", {"wte.weight": 7}, {"wte.weight": ["a"]}])
def test_an_index_without_a_weight_map_is_refused(tmp_path, weight_map):
    write_shards(tmp_path, weight_map)
    with pytest.raises(ValueError, match="weight_map must map tensor names to files"):
        load_model(tmp_path)


@pytest.mark.parametrize("outside", ["../outside.safetensors", "inside/../../outside.safetensors", "{absolute}"])
def test_an_index_cannot_reach_outside_its_directory(tmp_path, outside):
    """Kills: `directory / shard` opened as it stands. The file outside is a valid one."""
    inside = tmp_path / "inside"
    shards = write_shards(inside)
    (inside / "model-1.safetensors").rename(tmp_path / "outside.safetensors")
    outside = outside.format(absolute=tmp_path / "outside.safetensors")
    write_shards(inside, {name: outside if "1" in shard else shard for name, shard in shards.items()})
    with pytest.raises(ValueError, match="not a file in the same directory"):
        load_model(inside)


# ---- a container that is damaged ----

HEADER, DATA = parts({"first": torch.arange(6.0).reshape(2, 3), "second": torch.tensor([1, 2])})  # 24 + 16 bytes


def second(**changes):
    """HEADER with another entry for "second"."""
    return HEADER | {"second": HEADER["second"] | changes}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("container") / "damaged.safetensors"


def test_the_container_that_is_damaged_below_is_whole(file):
    file.write_bytes(container(HEADER | {"__metadata__": {"format": "pt"}}, DATA))
    tensors = read_safetensors(file)
    assert torch.equal(tensors["first"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(tensors["second"], torch.tensor([1, 2]))
    assert len(tensors) == 2


@pytest.mark.parametrize(
    ("header", "data"),
    [
        pytest.param(second(data_offsets=[20, 36]), DATA[:36], id="overlap"),
        pytest.param(second(data_offsets=[0, 16]), DATA[:24], id="the same place twice"),
        pytest.param(second(data_offsets=[32, 48]), DATA + bytes(8), id="gap"),
        pytest.param(second(data_offsets=[1000, 1016]), DATA, id="starts out of range"),
        pytest.param(second(data_offsets=[24, 48], shape=[3]), DATA, id="ends out of range"),
        pytest.param(second(data_offsets=[2**62, 2**62 + 16]), DATA, id="far out of range"),
        pytest.param(second(shape=[3]), DATA, id="too few bytes for the shape"),
        pytest.param(second(shape=[1]), DATA, id="too many bytes for the shape"),
        pytest.param(second(shape=[]), DATA, id="too many bytes for a scalar"),
        pytest.param(second(dtype="F32"), DATA, id="too many bytes for the dtype"),
        pytest.param(second(dtype="F7"), DATA, id="unknown dtype"),
        pytest.param(second(dtype=7), DATA, id="dtype a number"),
        pytest.param(second(dtype=None), DATA, id="dtype null"),
        pytest.param(second(dtype=["I64"]), DATA, id="dtype a list"),
        pytest.param(second(shape=None), DATA, id="shape null"),
        pytest.param(second(shape=2), DATA, id="shape a number"),
        pytest.param(second(shape=["2"]), DATA, id="shape of text"),
        pytest.param(second(shape=[2.0]), DATA, id="shape of floats"),
        pytest.param(second(shape=[True, 2]), DATA, id="shape of truth values"),
        pytest.param(second(shape=[-1, -2]), DATA, id="negative shape"),
        pytest.param(second(shape=[2**64, 0]), DATA, id="shape beyond 64 bits"),
        pytest.param(second(shape=[2**62, 2**62, 0], data_offsets=[24, 24]), DATA[:24], id="shape that overflows"),
        pytest.param(second(data_offsets=[40, 24]), DATA, id="offsets reversed"),
        pytest.param(second(data_offsets=[24]), DATA, id="one offset"),
        pytest.param(second(data_offsets=[24, 40, 56]), DATA, id="three offsets"),
        pytest.param(second(data_offsets=[24.0, 40.0]), DATA, id="offsets that are floats"),
        pytest.param(second(data_offsets="24-40"), DATA, id="offsets that are text"),
        pytest.param(HEADER | {"second": [24, 40]}, DATA, id="entry a list"),
        pytest.param(HEADER | {"second": None}, DATA, id="entry null"),
        pytest.param(HEADER | {"second": {}}, DATA, id="entry empty"),
    ],
)
def test_a_damaged_entry_is_refused_by_its_tensors_name(file, header, data):
    file.write_bytes(container(header, data))
    with pytest.raises(ValueError, match=r"damaged\.safetensors: tensor (first|second)\b"):
        read_safetensors(file)


TWINS = json.dumps(HEADER)[:-1] + ', "first": ' + json.dumps(HEADER["first"]) + "}"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(b"", "not a safetensors file", id="empty"),
        pytest.param(bytes(7), "not a safetensors file", id="seven bytes"),
        pytest.param(bytes(8), "not valid JSON", id="a header of no bytes"),
        pytest.param((2**64 - 1).to_bytes(8, "little") + bytes(99), "no room for its header", id="header too long"),
        pytest.param((100).to_bytes(8, "little") + bytes(99), "no room for its header", id="header one byte too long"),
        pytest.param(container(b"{", b""), "not valid JSON", id="not JSON"),
        pytest.param(container(b"\xff\xfe{}", b""), "not valid JSON", id="not UTF-8"),
        pytest.param(container(b"[" * 100_000, b""), "not valid JSON", id="nested too deeply"),
        pytest.param(container(b'{"first": ' + b"9" * 5000 + b"}", b""), "not valid JSON", id="number too long"),
        pytest.param(container([HEADER], DATA), "not a JSON object", id="a list"),
        pytest.param(container(b"null", b""), "not a JSON object", id="null"),
        pytest.param(container(TWINS.encode(), DATA), "a name appears twice", id="twins"),
        pytest.param(container(b'{"a": {"dtype": "F32", "dtype": "F64"}}', b""), "appears twice", id="twin keys"),
        pytest.param(container(HEADER, DATA + b"\0"), "1 bytes after the last tensor", id="trailing byte"),
        pytest.param(container({}, b"\0"), "1 bytes after the last tensor", id="no tensor but data"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(file, raw, message):
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        read_safetensors(file)


def test_a_header_beyond_the_containers_limit_is_not_read(file):
    """Kills: a header limited by the file's size alone."""
    with open(file, "wb") as sparse:
        sparse.write((MAX_HEADER + 1).to_bytes(8, "little"))
        sparse.truncate(MAX_HEADER + 100)
    with pytest.raises(ValueError, match="no room for its header"):
        read_safetensors(file)
    file.unlink()


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


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(max_size=3), value, max_size=3),
    max_leaves=4,
)
extents = st.integers(0, 4) | st.integers(0, 40) | st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*CODES.values(), "I32", "U8"]) | json_values,
        "shape": st.lists(extents, max_size=4) | json_values,
        "data_offsets": st.just([0, 0]) | st.just([0, 40]) | st.lists(extents, min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=300)
@given(st.dictionaries(st.text(max_size=3), entries | json_values, max_size=3) | json_values)
@example({"all": {"dtype": "U8", "shape": [40], "data_offsets": [0, 40]}})
@example(HEADER | {"none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [40, 40]}})
def test_any_header_is_read_as_it_says_or_refused(file, header):
    """Kills: a shape that torch cannot hold; a size compared with text."""
    file.write_bytes(container(header, DATA))
    try:
        tensors = read_safetensors(file)
    except ValueError as error:
        assert "damaged.safetensors: " in str(error)  # noqa: PT017
    else:
        assert {name: list(t.shape) for name, t in tensors.items()} == {n: e["shape"] for n, e in header.items()}
        assert sum(t.numel() * t.element_size() for t in tensors.values()) == len(DATA)


# ---- a whole container that is no GPT-2 ----


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("h.1.ln_2.bias", None, "h.1.ln_2.bias is missing"),
        ("wte.weight", None, "wte.weight is missing"),
        ("h.2.ln_1.bias", torch.zeros(4), "unexpected tensor h.2.ln_1.bias"),
        ("h.1.attn.c_attn.weight", torch.zeros(12, 4), "h.1.attn.c_attn.weight has shape [12, 4]"),
        ("h.0.mlp.c_fc.weight", torch.zeros(64), "h.0.mlp.c_fc.weight has shape [64], config.json asks for [4, 16]"),
        ("h.0.mlp.c_fc.weight", torch.zeros(4, 16, 1), "h.0.mlp.c_fc.weight has shape [4, 16, 1]"),
        ("wpe.weight", torch.zeros(4, 4), "wpe.weight has shape [4, 4], config.json asks for [3, 4]"),
        ("ln_f.bias", torch.zeros(()), "ln_f.bias has shape []"),
        ("ln_f.weight", torch.ones(4, dtype=torch.long), "ln_f.weight is torch.int64, not floating point"),
        ("ln_f.weight", torch.ones(4, dtype=torch.bool), "ln_f.weight is torch.bool, not floating point"),
        ("lm_head.weight", torch.zeros(5, 4), "lm_head.weight differs from wte.weight"),
        ("lm_head.weight", torch.zeros(4, 4), "lm_head.weight differs from wte.weight"),
    ],
)
def test_tensors_that_are_not_the_configs_gpt2_are_refused_by_name(tmp_path, prefix, name, tensor, message):
    tensors = gpt2_tensors(random_gpt()) | {name: tensor}
    write_directory(tmp_path, {prefix + name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(tmp_path)


def test_a_tensor_with_and_without_its_prefix_is_refused(tmp_path):
    tensors = gpt2_tensors(random_gpt())
    write_directory(tmp_path, tensors | {"transformer.ln_f.bias": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"ln_f\.bias appears with and without the prefix"):
        load_model(tmp_path)


# ---- config.json ----


def rewrite_config(directory, **changes):
    """Change keys of a directory's config.json; None removes the key."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "relu"),
        ("activation_function", ["gelu_new"]),
        ("layer_norm_epsilon", 0),
        ("layer_norm_epsilon", "1e-5"),
        ("tie_word_embeddings", "yes"),
        ("n_inner", 8.0),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("vocab_size", 0),
        ("vocab_size", "5"),
        ("n_positions", 3.0),
        ("n_layer", True),
        ("n_layer", []),
        ("n_embd", -4),
        ("n_head", 3),
    ],
)
def test_a_config_that_means_another_network_is_refused_with_its_key(saved, key, value):
    """Kills: a key that is read by nobody."""
    rewrite_config(saved, **{key: value})
    with pytest.raises(ValueError, match=rf"config\.json: .*\b{key}\b"):
        load_model(saved)


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_missing_size_is_refused_with_its_key(saved, key):
    rewrite_config(saved, **{key: None})
    with pytest.raises(ValueError, match=f"missing key '{key}'"):
        load_model(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "gelu_pytorch_tanh"},
        {"n_inner": 16},
        {"n_ctx": 3, "resid_pdrop": 0.1, "summary_type": "cls_index", "initializer_range": 0.5},
        {"model_type": None, "activation_function": None, "layer_norm_epsilon": None, "tie_word_embeddings": None},
    ],
)
def test_a_config_that_means_the_same_network_is_read(saved, changes):
    """Kills: defaults that are not GPT-2's; a refusal of what has no effect."""
    rewrite_config(saved, **changes)
    assert_same_model(load_model(saved), random_gpt())


@given(
    st.dictionaries(
        st.sampled_from(["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"]),
        st.one_of(st.integers(1, 6), st.integers(1, 10**30), json_values),
        min_size=1,
    )
)
@example({"n_layer": 10**9})
@example({"vocab_size": 2**62})
@example({"n_positions": 10**30})
@example({"n_embd": 2**40})
def test_a_config_with_any_other_size_is_refused(damaged, sizes):
    """Kills: a network of config.json's size built before its tensors are looked at. A billion layers never end."""
    (damaged / "model.safetensors").write_bytes((damaged / "whole").read_bytes())
    right, config = {"vocab_size": 5, "n_positions": 3, "n_embd": 4, "n_layer": 1}, damaged / "config.json"
    before = config.read_text()
    try:
        config.write_text(json.dumps(json.loads(before) | sizes))
        same = all(type(size) is int and size == right.get(key, size) for key, size in sizes.items())
        if same and sizes.get("n_head", 2) in (1, 2, 4):
            assert load_model(damaged).config.n_embd == 4
        else:
            with pytest.raises(ValueError, match=re.escape(str(damaged))):
                load_model(damaged)
    finally:
        config.write_text(before)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"gpt2"', b"\xff", b"[" * 100_000, b'{"n_layer": }'])
def test_a_config_that_is_no_json_object_is_refused(saved, raw):
    (saved / "config.json").write_bytes(raw)
    with pytest.raises(ValueError, match=r"config\.json: (not JSON|expected a JSON object)"):
        load_model(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_directory_without_one_of_its_files_is_refused_with_the_name(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=re.escape(name)):
        load_model(saved)
    (saved / name).mkdir()
    with pytest.raises(ValueError, match=re.escape(name)):
        load_model(saved)


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file"):
        load_model(tmp_path / "file")


# ---- whole files or none ----


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    """Kills: the file opened for writing in its own place."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail():
        with write_atomically(path) as file:
            file.write(b"new, half of it")
            file.flush()
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    with write_atomically(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_whose_second_tensor_cannot_be_read_leaves_the_old_model(saved):
    """Kills: tensors written one by one over the old ones. A tensor on the device "meta" has no bytes to write."""
    raw = (saved / "model.safetensors").read_bytes()
    with pytest.raises(NotImplementedError):
        write_safetensors(saved / "model.safetensors", {"a": torch.zeros(3), "b": torch.zeros(3, device="meta")})
    assert (saved / "model.safetensors").read_bytes() == raw
    assert_same_model(load_model(saved), random_gpt())


def test_saving_again_replaces_the_model(saved):
    save_model(random_gpt(seed=1, sizes=GPTConfig(3, 2, 1, 1, 2)), saved)
    assert_same_model(load_model(saved), random_gpt(seed=1, sizes=GPTConfig(3, 2, 1, 1, 2)))
    names = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in saved.iterdir()) == names


def test_the_ecosystems_samplers_are_told_which_token_ends_a_text(tmp_path):
    """Kills: an end-of-text that only config.json names, which newer samplers do not ask."""
    save_model(random_gpt(), tmp_path, end_of_text=4)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 4, "eos_token_id": 4, "pad_token_id": 4}
