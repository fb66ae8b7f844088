"""The language model: tokens in, hidden states out, and its weights to and from a directory."""

from dpo_min import exports

READING_ORDER = (
    "config",
    "attention",
    "gpt",
    "llama",
    "lora",
    "model_directory",
    "config_json",
    "adapter_config",
    "safetensors",
    "weights",
    "adapter",
)
__getattr__ = exports(__name__, load_model="weights", save_model="weights")
