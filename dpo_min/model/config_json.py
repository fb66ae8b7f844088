"""A model directory's config.json, in the ecosystem's keys, both ways. No PyTorch.

A key is read, or has a value that means what we compute, or is known to change nothing. Any other key is refused by
name, since it may change what the ecosystem's class computes.
"""

import re
from pathlib import Path
from reprlib import repr as short
from typing import NamedTuple

from dpo_min.model.config import GPTConfig, LlamaConfig, RopeScaling
from dpo_min.model.model_directory import read_config, weight_files

MAX_LAYERS = 1000  # which take a second to build; the deepest published models have some 130
GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}  # the first of a kind is what we write


class Family(NamedTuple):
    """How config.json says what a config of ours says."""

    config: type
    architecture: str
    keys: dict  # key → our field
    absent: dict  # key → what it means that it is not there; for the other keys that is an error


SHARED = {"vocab_size": "vocab_size", "tie_word_embeddings": "tied"}
GPT2 = SHARED | {"n_positions": "block_size", "activation_function": "gelu", "layer_norm_epsilon": "norm_epsilon"}
GPT2 |= {name: name for name in ("n_layer", "n_head", "n_embd", "n_inner")}
LLAMA = SHARED | {"max_position_embeddings": "block_size", "hidden_size": "n_embd", "intermediate_size": "n_inner"}
LLAMA |= {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "num_key_value_heads": "n_kv_head"}
LLAMA |= {"head_dim": "head_size", "rms_norm_eps": "norm_epsilon"}
LLAMA |= {name: name for name in ("rope_theta", "rope_scaling", "bos_token_id", "model_type")}
GPT2_ABSENT = {"n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
ABSENT = {"head_dim": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": None}
FAMILIES = {
    "gpt2": Family(GPTConfig, "GPT2LMHeadModel", GPT2, GPT2_ABSENT | {"tie_word_embeddings": True}),
    "llama": Family(LlamaConfig, "LlamaForCausalLM", LLAMA, ABSENT | {"num_key_value_heads": None}),
    "mistral": Family(LlamaConfig, "MistralForCausalLM", LLAMA, ABSENT | {"num_key_value_heads": 8}),
    "qwen2": Family(LlamaConfig, "Qwen2ForCausalLM", LLAMA, ABSENT | {"num_key_value_heads": 32}),
    "qwen3": Family(LlamaConfig, "Qwen3ForCausalLM", LLAMA, ABSENT | {"num_key_value_heads": 32, "head_dim": 128}),
}
OTHERS = {"moe|mixtral": "a mixture of experts", "gemma": "its norms, scales and windows differ"}
ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
SCALING = {name: name for name in ("factor", "low_freq_factor", "high_freq_factor")}
SCALING |= {"original_max_position_embeddings": "original_positions"}
DERIVED = ("num_key_value_heads", "head_dim")  # null there means: from the other sizes
WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
# What would be computed differently, by key, and the values that mean what we compute.
FIXED = {"activation_function": [*GELU], "hidden_act": ["silu", "swish"], "partial_rotary_factor": [1]}
FIXED |= {"scale_attn_weights": [True], "pruned_heads": [{}]}
FIXED |= {key: [False] for key in "attention_bias mlp_bias rope_interleaved use_mrope tie_encoder_decoder".split()}
FIXED |= {key: [False] for key in "scale_attn_by_inverse_layer_idx add_cross_attention is_encoder_decoder".split()}
QUANTISED = "quantised weights, which are not read; give the weights that they were made from"
REASONS = {"quantization_config": QUANTISED, "quantization": QUANTISED, "auto_map": "code of its own, which is not run"}
REASONS |= dict.fromkeys(("num_local_experts", "num_experts"), "a mixture of experts, which is not supported")
# What changes training, decoding or nothing, but not what is computed.
HARMLESS = re.compile(
    r"_.*|.*transformers.*|unsloth.*|summary_.*|output_.*|.*(_token_id|_pdrop|dropout)|architectures|model_type"
    r"|(torch_)?dtype|use_cache|use_bfloat16|initializer_range|reorder_and_upcast_attn|n_ctx|n_special|torchscript"
    r"|predict_special_tokens|gradient_checkpointing|is_decoder|id2label|label2id|num_labels|problem_type|prefix"
    r"|finetuning_task|task_specific_params|tokenizer_class|return_dict.*|name_or_path|attn_implementation"
    r"|chunk_size_feed_forward|tf_legacy_loss|model_max_length|max_sequence_length|pretraining_tp|is_llama_config"
    r"|(max|min)_(new_tokens|length)|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature"
    r"|top_[kp]|typical_p|repetition_penalty|length_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids"
    r"|num_return_sequences|remove_invalid_values|exponential_decay_length_penalty|(begin_)?suppress_tokens"
)


def load_config(directory):
    """The `GPTConfig` or `LlamaConfig` of a model directory, by its config.json's model_type.

    Raises:
        ValueError: it is no model's, or means a network that is not supported; the message names the key.
    """
    path, content = Path(directory) / "config.json", read_config(directory)
    kind = content.get("model_type", "gpt2" if "n_embd" in content else None)
    if kind not in [*FAMILIES]:
        reasons = [f" ({why})" for pattern, why in OTHERS.items() if re.search(pattern, str(kind))]
        raise ValueError(f"{path}: model_type is {short(kind)}{''.join(reasons)}; supported: {', '.join(FAMILIES)}")
    family, llama = FAMILIES[kind], FAMILIES[kind].config is LlamaConfig
    for key, value in content.items():
        check_key(path, key, value, [*family.keys, *(WINDOW + ROPE if llama else ())])
    found = family.absent | {key: content[key] for key in family.keys if content.get(key) is not None}
    found |= {key: None for key in DERIVED if content.get(key, 0) is None}
    try:
        fields = {field: found[key] for key, field in family.keys.items() if key not in (*ROPE, "model_type")}
    except KeyError as error:
        raise ValueError(f"{path}: missing key {error}") from error
    if llama:
        config = build(path, family, fields | read_rope(path, content) | {"model_type": kind})
        check_window(path, content, config)
    else:
        config = build(path, family, fields | {"gelu": GELU[fields["gelu"]]})
    if config.n_layer > MAX_LAYERS:
        raise ValueError(f"{path}: {short(config.n_layer)} layers are more than any model has")
    weight_files(directory)  # a directory without weights is found out here, not after the data are read
    return config


def check_key(path, key, value, known):
    """ValueError where a key, with this value, may mean another network than ours."""
    if key in FIXED and value is not None and value not in FIXED[key]:
        raise ValueError(f"{path}: {key} is {short(value)}; supported: {', '.join(map(repr, FIXED[key]))}")
    if value in (None, {}, []) or key in known or key in FIXED or HARMLESS.fullmatch(key):
        return
    why = REASONS.get(key, "not understood; remove it if it does not change what the model computes")
    raise ValueError(f"{path}: {short(key)}: {why}")


def read_rope(path, content):
    """rope_theta and rope_scaling, from the keys of old files or of new ones."""
    given = [content[key] for key in ("rope_parameters", "rope_scaling") if content.get(key)]
    if not all(isinstance(one, dict) for one in given) or (len(given) == 2 and given[0] != given[1]):
        raise ValueError(f"{path}: rope_parameters and rope_scaling must be objects that do not contradict each other")
    rope = {key: value for one in given for key, value in one.items() if value is not None}
    thetas = [one["rope_theta"] for one in (rope, content) if one.get("rope_theta") is not None]
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"{path}: rope_type is {short(kind)}; supported: 'default', 'llama3'")
    if thetas and thetas[0] != thetas[-1]:
        raise ValueError(f"{path}: rope_theta is {short(thetas[0])} and {short(thetas[1])}")
    for key, value in rope.items():
        check_key(path, key, value, [*SCALING, "rope_theta", "rope_type", "type"])
    scaling = {ours: rope.get(key) for key, ours in SCALING.items()} if kind == "llama3" else {}
    for key, ours in SCALING.items() if scaling else ():
        if type(scaling[ours]) not in (int, float) or not 0 < scaling[ours] < 2**63:
            raise ValueError(f"{path}: {key} of the rope_type 'llama3' is {short(scaling[ours])}, not a number above 0")
    if scaling and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise ValueError(f"{path}: low_freq_factor must be below high_freq_factor")
    theta = thetas[0] if thetas else 10_000.0
    return {"rope_theta": theta, "rope_scaling": RopeScaling(**scaling) if scaling else None}


def check_window(path, content, config):
    """ValueError where a token would not see all tokens before it."""
    window = content.get("sliding_window", 4096 if config.model_type == "mistral" else None)
    types = content.get("layer_types")
    if types is not None and not (isinstance(types, list) and all(kind == "full_attention" for kind in types)):
        raise ValueError(f"{path}: layer_types: layers that are not full_attention are not supported")
    if config.model_type.startswith("qwen") and (types or not content.get("use_sliding_window")):
        window = None  # named, and not in use
    if window is not None and not (type(window) is int and window >= config.block_size):
        raise ValueError(f"{path}: sliding_window: attention to the last {short(window)} tokens is not supported")


def build(path, family, fields):
    """The config with these fields; ValueError names config.json's key."""
    try:
        return family.config(**fields)
    except ValueError as error:
        message = re.sub(r"^\w+: ", "", str(error))
        for key, field in family.keys.items():
            message = re.sub(rf"\b{field}\b", key, message)
        raise ValueError(f"{path}: {message}") from error


def as_json(config, end_of_text):
    """What config.json says of a config; `end_of_text` is its token's id, or None."""
    kind = getattr(config, "model_type", "gpt2")
    family = FAMILIES[kind]
    content = {"architectures": [family.architecture], "model_type": kind}
    content |= {key: getattr(config, field) for key, field in family.keys.items()}
    if kind == "gpt2":
        content["activation_function"] = next(name for name, gelu in GELU.items() if gelu == config.gelu)
        content |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) | {"bos_token_id": end_of_text}
    elif config.rope_scaling:
        scaling = {key: getattr(config.rope_scaling, ours) for key, ours in SCALING.items()}
        content["rope_scaling"] = {"rope_type": "llama3", **scaling}
    if kind == "mistral":
        content["sliding_window"] = None
    return content | {"eos_token_id": end_of_text, "torch_dtype": "float32"}
