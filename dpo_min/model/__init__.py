"""The language model: tokens in, hidden states out, and its weights to and from a directory."""

READING_ORDER = ("config", "config_json", "attention", "gpt", "weights")
