"""From a prompt to a completion: the distribution of the next token, a draw from it, and beams."""

READING_ORDER = ("stop_strings", "sampling", "decoding_weights", "generate", "beams")
