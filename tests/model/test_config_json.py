"""config.json: published ones are read, every form of a key is, and what may mean another network is refused."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.model.config import GPTConfig, LlamaConfig, RopeScaling
from dpo_min.model.config_json import FAMILIES, FIXED, HARMLESS, REASONS, as_json, load_config

LLAMA_3_2 = json.loads("""{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
"bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
"initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
"low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
"tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": true,
"vocab_size": 128256}""")
SMOLLM2 = json.loads("""{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.0416,
"intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false, "model_type":
"llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
"tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"q4f16":
"float16"}}, "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152}""")
MISTRAL = json.loads("""{"architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
"eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
"max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
"num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
"tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0", "use_cache": true,
"vocab_size": 32768}""")
QWEN2 = json.loads("""{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
"eos_token_id": [151645, 151643], "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
"intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
"num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta":
1000000.0, "sliding_window": 4096, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version":
"4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936}""")
QWEN3 = json.loads("""{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
"bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
"initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
"model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps":
1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
"torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false,
"vocab_size": 151936}""")
GPT2 = json.loads("""{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
"bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon":
1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
"resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
"summary_type": "cls_index", "summary_use_proj": true, "task_specific_params": {"text-generation": {"do_sample": true,
"max_length": 50}}, "vocab_size": 50257}""")
PUBLISHED = {"gpt2": GPT2, "llama": LLAMA_3_2, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory whose config.json every test writes anew; nobody looks into its weights."""
    directory = tmp_path_factory.mktemp("model")
    (directory / "model.safetensors").touch()
    return directory


def read(directory, content):
    """The config of a config.json: an object, or its text."""
    (directory / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return load_config(directory)


# ---- what is read ----


@pytest.mark.parametrize(
    ("content", "parameters"),
    [
        (GPT2, 124_439_808),
        (GPT2 | {"n_embd": 1600, "n_layer": 48, "n_head": 25}, 1_557_611_200),
        (SMOLLM2, 134_515_008),
        (LLAMA_3_2, 1_235_814_400),
        (MISTRAL, 7_248_023_552),
        (QWEN2, 494_032_768),
        (QWEN3, 596_049_920),
    ],
    ids=["gpt2", "gpt2-xl", "smollm2-135m", "llama-3.2-1b", "mistral-7b-v0.3", "qwen2.5-0.5b", "qwen3-0.6b"],
)
def test_published_models_have_their_published_number_of_parameters(directory, content, parameters):
    """Kills: a tied head counted; biases or norms forgotten; a head size derived where it is given."""
    assert read(directory, content).parameters() == parameters


def test_every_size_is_read_into_its_field(directory):
    """Kills: two keys exchanged."""
    expected = LlamaConfig(
        128256, 131072, 16, 32, 2048, 8192, 8, 64, 1e-5, 500_000.0, RopeScaling(32.0, 1.0, 4.0, 8192)
    )
    assert read(directory, LLAMA_3_2) == expected
    assert read(directory, LLAMA_3_2).bos_token_id == 128000
    assert read(directory, GPT2) == GPTConfig()
    forms = {"n_inner": 99, "activation_function": "gelu", "layer_norm_epsilon": 1e-6, "tie_word_embeddings": False}
    expected = GPTConfig(n_inner=99, gelu="none", norm_epsilon=1e-6, tied=False)
    assert read(directory, GPT2 | forms) == expected


SIZES = {"vocab_size": 9, "max_position_embeddings": 64, "hidden_size": 12, "intermediate_size": 7}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("kind", "given_", "expected"),
    [
        ("llama", {}, {"n_kv_head": 2, "head_size": 6, "norm_epsilon": 1e-6, "rope_theta": 10_000.0, "tied": False}),
        ("llama", {"num_key_value_heads": None, "head_dim": None, "rms_norm_eps": None}, {"n_kv_head": 2}),
        ("mistral", {"sliding_window": None, "num_attention_heads": 16, "head_dim": 4}, {"n_kv_head": 8}),
        ("mistral", {"sliding_window": None, "num_key_value_heads": None}, {"n_kv_head": 2}),
        ("qwen2", {"num_attention_heads": 32, "head_dim": 2}, {"n_kv_head": 32}),
        ("qwen3", {"num_key_value_heads": 1}, {"head_size": 128, "n_kv_head": 1}),
        ("qwen3", {"num_key_value_heads": 1, "head_dim": None}, {"head_size": 6}),
    ],
)
def test_an_absent_key_means_what_the_ecosystems_class_takes(directory, kind, given_, expected):
    """Kills: Llama's defaults for all; GPT-2's tied head for all."""
    config = read(directory, {"model_type": kind, **SIZES, **given_})
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.model_type == kind


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 32}
PLAIN = {"model_type": "llama", **SIZES}


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 5e5, "rope_scaling": ROPE},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3"} | {k: v for k, v in ROPE.items() if k != "rope_type"}},
        {"rope_parameters": {"rope_theta": 5e5} | ROPE},
        {"rope_theta": 5e5, "rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
        {"rope_theta": 5e5, "rope_scaling": ROPE, "rope_parameters": ROPE},
        {"rope_theta": 500000, "rope_scaling": None, "rope_parameters": ROPE | {"rope_theta": 5e5}},
    ],
)
def test_rotary_settings_are_read_from_old_and_from_new_keys(directory, keys):
    """Kills: one place that is looked at, whichever."""
    config = read(directory, PLAIN | keys)
    assert (config.rope_theta, config.rope_scaling) == (5e5, RopeScaling(8.0, 1.0, 4.0, 32))


@pytest.mark.parametrize(
    "keys",
    [{}, {"rope_scaling": None}, {"rope_scaling": {"rope_type": "default"}}, {"rope_parameters": {"type": "default"}}],
)
def test_default_rotary_positions_have_several_spellings(directory, keys):
    assert read(directory, PLAIN | keys).rope_scaling is None
    assert read(directory, PLAIN | keys | {"rope_theta": 7}).rope_theta == 7


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("mistral", {"sliding_window": 64}),  # of as many positions
        ("mistral", {}),  # 4096
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 0}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64}),
        ("llama", {"use_sliding_window": False, "sliding_window": None}),
    ],
)
def test_a_window_that_is_not_in_use_is_read(directory, kind, keys):
    content = {"model_type": kind, **SIZES, "num_key_value_heads": 1, **keys}
    assert read(directory, content).block_size == 64


configs = st.builds(
    LlamaConfig,
    vocab_size=st.integers(1, 2**40),
    block_size=st.integers(1, 4096),
    n_layer=st.integers(1, 99),
    n_head=st.sampled_from([2, 4, 8]),
    n_kv_head=st.sampled_from([1, 2]),
    n_embd=st.integers(1, 9).map(lambda n: 16 * n),
    n_inner=st.integers(1, 99),
    head_size=st.none() | st.integers(1, 99).map(lambda n: 2 * n),
    norm_epsilon=st.floats(1e-9, 1),
    rope_theta=st.floats(1, 1e9),
    rope_scaling=st.none()
    | st.builds(RopeScaling, st.floats(1, 99), st.floats(0.1, 1), st.floats(1.5, 9), st.integers(1, 2**40)),
    tied=st.booleans(),
    model_type=st.sampled_from([*FAMILIES][1:]),
    bos_token_id=st.none() | st.integers(0, 9),
) | st.builds(
    GPTConfig,
    n_layer=st.integers(1, 99),
    n_inner=st.none() | st.integers(1, 99),
    gelu=st.sampled_from(["tanh", "none"]),
    norm_epsilon=st.floats(1e-9, 1),
    tied=st.booleans(),
)


@given(configs)
def test_what_is_written_is_read_back(directory, config):
    """Kills: a field that is not written; a class's default taken for it."""
    content = as_json(config, 7)
    assert (content["eos_token_id"], content["architectures"]) == (7, [FAMILIES[content["model_type"]].architecture])
    again = read(directory, content)
    assert again == config
    assert again.parameters() == config.parameters()
    if isinstance(config, LlamaConfig):
        assert again.bos_token_id == config.bos_token_id


# ---- what is refused ----


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "activation_function", ["gelu_new"]),
        ("gpt2", "layer_norm_epsilon", "1e-5"),
        ("gpt2", "layer_norm_epsilon", 0),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "add_cross_attention", True),
        ("gpt2", "is_encoder_decoder", True),
        ("gpt2", "pruned_heads", {"0": [1]}),
        ("gpt2", "n_inner", 8.0),
        ("gpt2", "tie_word_embeddings", "yes"),
        ("gpt2", "hidden_size", 768),
        ("gpt2", "rope_scaling", {"rope_type": "default"}),
        ("gpt2", "n_layer", 200_000),
        ("llama", "hidden_act", "gelu"),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "rope_interleaved", True),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "rms_norm_eps", float("nan")),
        ("llama", "rms_norm_eps", -1e-6),
        ("llama", "rope_theta", "500000"),
        ("llama", "rope_theta", 0),
        ("llama", "head_dim", 63),
        ("llama", "head_dim", 0),
        ("llama", "num_key_value_heads", 5),
        ("llama", "num_attention_heads", 0),
        ("llama", "num_hidden_layers", 10**9),
        ("llama", "max_position_embeddings", "8192"),
        ("llama", "quantization_config", {"bits": 4}),
        ("llama", "quantization", {"group_size": 64}),
        ("llama", "auto_map", {"AutoModel": "modeling.Own"}),
        ("llama", "num_local_experts", 8),
        ("llama", "sliding_window", 4096),
        ("llama", "layer_types", ["full_attention", "sliding_attention"]),
        ("llama", "layer_types", "full_attention"),
        ("llama", "layer_types", [{}]),
        ("llama", "residual_multiplier", 0.22),
        ("llama", "logit_scale", 0),
        ("llama", "use_rope", False),
        ("mistral", "sliding_window", 4096),
        ("mistral", "sliding_window", "none"),
        ("qwen2", "dual_chunk_attention_config", {"chunk_size": 8}),
        ("qwen3", "attention_bias", True),
        ("qwen3", "num_experts", 128),
    ],
)
def test_a_config_that_may_mean_another_network_is_refused_with_its_key(directory, kind, key, value):
    """Kills: a key that is read by nobody."""
    with pytest.raises(ValueError, match=rf"config\.json: .*\b({key}|layers)\b"):
        read(directory, PUBLISHED[kind] | {key: value})


def test_a_window_in_use_is_refused(directory):
    """Kills: a default window of Mistral's overlooked; layers below max_window_layers taken for all."""
    for content in (
        {key: value for key, value in MISTRAL.items() if key != "sliding_window"},
        QWEN2 | {"use_sliding_window": True},
        QWEN3 | {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 28},
    ):
        with pytest.raises(ValueError, match=r"config\.json: sliding_window: attention to the last 4096 tokens"):
            read(directory, content)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'; supported: 'default', 'llama3'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "rope_type is"),
        ({"rope_scaling": [1]}, "must be objects"),
        ({"rope_scaling": ROPE, "rope_parameters": ROPE | {"factor": 9.0}}, "do not contradict"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta is 1000000.0 and 10000.0"),
        ({"rope_scaling": ROPE | {"factor": 0}}, "factor of the rope_type 'llama3' is 0, not a number above 0"),
        ({"rope_scaling": ROPE | {"low_freq_factor": 4.0}}, "low_freq_factor must be below high_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor of the rope_type 'llama3' is None"),
        ({"rope_scaling": ROPE | {"attention_factor": 2.0}}, "'attention_factor': not understood"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "'full_attention': not understood"),
        ({"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ],
)
def test_other_rotary_positions_are_refused(directory, rope, message):
    with pytest.raises(ValueError, match=rf"config\.json: .*{re.escape(message)}"):
        read(directory, PLAIN | rope)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gemma2", "'gemma2' (its norms, scales and windows differ); supported: gpt2, llama, mistral, qwen2, qwen3"),
        ("mixtral", "'mixtral' (a mixture of experts)"),
        ("qwen3_moe", "'qwen3_moe' (a mixture of experts)"),
        ("phi3", "'phi3'; supported"),
        (["llama"], "['llama']; supported"),
        (7, "7; supported"),
        (None, "None; supported"),
    ],
)
def test_another_architecture_is_refused_by_its_name(directory, kind, message):
    with pytest.raises(ValueError, match=rf"config\.json: model_type is {re.escape(message)}"):
        read(directory, PLAIN | {"model_type": kind})


@given(st.text(min_size=1), st.integers(1) | st.floats(0.1, 1) | st.text(min_size=1) | st.lists(st.none(), min_size=1))
@example("attn_logit_softcapping", 50.0)
def test_a_key_that_nobody_knows_is_refused(directory, key, value):
    """Kills: a list of what is refused instead of one of what is understood."""
    known = {*FAMILIES["gpt2"].keys, *FIXED, *REASONS}
    if key not in known and not HARMLESS.fullmatch(key):
        with pytest.raises(ValueError, match=r"config\.json: .*not understood; remove it if it does not change"):
            read(directory, GPT2 | {key: value})


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_missing_size_is_refused_with_its_key(directory, kind):
    optional = {"num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_scaling"}
    sizes = [key for key in PUBLISHED[kind] if key in FAMILIES[kind].keys and key not in FAMILIES[kind].absent]
    for key in sorted({*sizes} - optional - {"model_type"}):
        with pytest.raises(ValueError, match=f"missing key '{key}'"):
            read(directory, {k: v for k, v in PUBLISHED[kind].items() if k != key})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"gpt2"', "[" * 100_000, '{"n_layer": }'])
def test_a_config_that_is_no_json_object_is_refused(directory, text):
    with pytest.raises(ValueError, match=r"config\.json: (not JSON|expected a JSON object)"):
        read(directory, text)


def test_a_number_of_five_thousand_digits_is_refused_with_the_files_name(directory):
    """Kills: Python's own error, which names no file."""
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        read(directory, json.dumps(GPT2)[:-1] + ', "n_ctx": ' + "9" * 5000 + "}")


def test_what_is_foreign_is_shown_shortened(directory):
    """Kills: a message of megabytes, or with a terminal's escape sequences in it."""
    for change in ({"n_embd": "x" * 10**6}, {"model_type": "\x1b[2J" * 1000}, {"\x1b[2J" * 10**5: 1}):
        with pytest.raises(ValueError, match="config") as caught:
            read(directory, GPT2 | change)
        assert len(str(caught.value)) < 500
        assert "\x1b" not in str(caught.value)


# ---- what is no model directory ----


def test_what_a_directory_is_mistaken_for_is_named(tmp_path):
    """A run, an adapter, GGUF, a pickle, a file, nothing at all. Kills: "no such file" for each."""

    def refused(path, message):
        with pytest.raises(ValueError, match=message) as caught:
            load_config(path)
        assert str(path) in str(caught.value)

    refused(tmp_path / "nowhere", r"config\.json: cannot be read")
    for name in ("run", "begun", "adapter", "gguf", "pickle", "empty"):
        (tmp_path / name).mkdir()
    for place in ("run", "begun"):
        (tmp_path / place / "model").mkdir()
        (tmp_path / place / "model" / "config.json").write_text(json.dumps(GPT2))
    (tmp_path / "run" / "config.json").write_text('{"data_sha256": "0", "n_layer": 2}')
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"GGUF")
    for place in ("pickle", "empty"):
        (tmp_path / place / "config.json").write_text(json.dumps(GPT2))
    (tmp_path / "pickle" / "pytorch_model.bin").touch()
    for place in ("run", "begun"):
        refused(
            tmp_path / place, rf"the directory of a run.*the model is in {re.escape(str(tmp_path / place / 'model'))}"
        )
    refused(tmp_path / "adapter", "an adapter; give the model that it was trained on")
    refused(tmp_path / "gguf", "a GGUF file is in it")
    refused(tmp_path / "gguf" / "model.gguf", "a .gguf file, not a directory with safetensors")
    refused(tmp_path / "pickle" / "pytorch_model.bin", "a .bin file, not a directory with safetensors")
    refused(tmp_path / "pickle", "no model.safetensors but pytorch_model.bin, a pickle")
    refused(tmp_path / "empty", "holds no model.safetensors$")
