"""The language model: tokens in, hidden states out, and its weights to and from a directory."""

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
