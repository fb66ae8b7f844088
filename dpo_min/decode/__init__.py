"""From a prompt to a completion: the distribution of the next token, a draw from it, and beams."""

from dpo_min import exports

READING_ORDER = ("stop_strings", "sampling", "packed_weights", "generation", "beams")
__getattr__ = exports(__name__, generate="generation", decoding_weights="packed_weights")
