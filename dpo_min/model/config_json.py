"""A model directory's config.json, in the ecosystem's keys, both ways. No PyTorch.

A key is a size that is read, or has a value that means what we compute, or is known to change nothing. Any other key
is refused by name, since it may change what the ecosystem's class computes.
"""

import re
from pathlib import Path
from reprlib import repr as short
from typing import NamedTuple

from dpo_min.model.config import GPTConfig
from dpo_min.system.files import read_json

MAX_LAYERS = 1000  # which take a second to build; the deepest published models have some 130
GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}  # the first of a kind is what we write


class Family(NamedTuple):
    """How config.json says what a config of ours says."""

    config: type
    architecture: str
    keys: dict  # key → our field
    absent: dict  # what it means where a key is absent; an absent key that has no entry is an error


GPT2_KEYS = {
    "vocab_size": "vocab_size",
    "n_positions": "block_size",
    "n_embd": "n_embd",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_inner": "n_inner",
    "activation_function": "gelu",
    "layer_norm_epsilon": "norm_epsilon",
    "tie_word_embeddings": "tied",
}
GPT2_ABSENT = {"n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5} | {
    "tie_word_embeddings": True
}
FAMILIES = {"gpt2": Family(GPTConfig, "GPT2LMHeadModel", GPT2_KEYS, GPT2_ABSENT)}
# What would be computed differently, by key, and the values that mean what we compute.
FIXED = {
    "scale_attn_weights": [True],
    "scale_attn_by_inverse_layer_idx": [False],
    "add_cross_attention": [False],
    "is_encoder_decoder": [False],
    "pruned_heads": [{}],
}
REASONS = {
    "quantization_config": "quantised weights are not supported: give the model that they were made from",
    "auto_map": "the model comes with code of its own, which is not run",
}
# What changes training, decoding, or nothing, but not what is computed.
HARMLESS = re.compile(
    r"_.*|.*transformers.*|unsloth.*|summary_.*|output_.*|.*(_token_id|_pdrop|dropout)|architectures|model_type"
    r"|(torch_)?dtype|use_cache|use_bfloat16|initializer_range|reorder_and_upcast_attn|n_ctx|n_special|torchscript"
    r"|predict_special_tokens|gradient_checkpointing|is_decoder|id2label|label2id|num_labels|problem_type|prefix"
    r"|finetuning_task|task_specific_params|tokenizer_class|return_dict.*|name_or_path|attn_implementation"
    r"|chunk_size_feed_forward|tf_legacy_loss|model_max_length"
    r"|(max|min)_(new_tokens|length)|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature"
    r"|top_[kp]|typical_p|repetition_penalty|length_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids"
    r"|num_return_sequences|remove_invalid_values|exponential_decay_length_penalty|(begin_)?suppress_tokens"
)


def load_config(directory):
    """The `GPTConfig` of a directory's config.json, whose model_type decides which.

    Raises:
        ValueError: there is none, or it means a network that is not supported; the message names the key.
    """
    path = Path(directory) / "config.json"
    content = read_json(path)
    kind = content.get("model_type", "gpt2")
    if kind not in FAMILIES:
        raise ValueError(f"{path}: model_type is {short(kind)}; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    for key, value in content.items():
        check_key(path, family, key, value)
    try:
        found = {field: content[key] if key in content else family.absent[key] for key, field in family.keys.items()}
    except KeyError as error:
        raise ValueError(f"{path}: missing key {error}") from error
    if "gelu" in found:
        found["gelu"] = GELU[found["gelu"]]
    return build(path, family, found)


def check_key(path, family, key, value):
    """Raise ValueError where a key, with this value, may mean another network than ours."""
    if key == "activation_function" and (not isinstance(value, str) or value not in GELU):
        raise ValueError(f"{path}: {key} is {short(value)}; supported: {', '.join(GELU)}")
    if key in REASONS and value:
        raise ValueError(f"{path}: {key}: {REASONS[key]}")
    if key in FIXED and value is not None and value not in FIXED[key]:
        raise ValueError(f"{path}: {key} is {short(value)}; supported: {', '.join(map(repr, FIXED[key]))}")
    known = key in family.keys or key in FIXED or value is None or HARMLESS.fullmatch(key)
    if not known and key not in REASONS:
        raise ValueError(f"{path}: {key} is not understood; remove it if it does not change what the model computes")


def build(path, family, found):
    """The config with these fields; ValueError names config.json's key."""
    try:
        config = family.config(**found)
    except ValueError as error:
        message = re.sub(r"^\w+: ", "", str(error))
        for key, field in family.keys.items():
            message = re.sub(rf"\b{field}\b", key, message)
        raise ValueError(f"{path}: {message}") from error
    if config.n_layer > MAX_LAYERS:
        raise ValueError(f"{path}: {config.n_layer} layers are more than any model has")
    return config


def as_json(config, end_of_text):
    """What config.json says of a config; `end_of_text` is its token's id, or None."""
    kind = "gpt2"
    family = FAMILIES[kind]
    content = {"architectures": [family.architecture], "model_type": kind}
    content |= {key: getattr(config, field) for key, field in family.keys.items()}
    if kind == "gpt2":
        content["activation_function"] = next(name for name, gelu in GELU.items() if gelu == config.gelu)
        content |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return content | {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "torch_dtype": "float32"}
