"""The language model: tokens in, hidden states out, and its weights to and from a directory."""

READING_ORDER = ("config", "attention", "gpt", "llama", "model_directory", "config_json", "safetensors", "weights")
