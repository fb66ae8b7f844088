"""From a line of JSON to the tensors of a step: row → `Preference` → `TokenizedPair` → `Batch`."""

from dpo_min import exports

READING_ORDER = (
    "tokenizer_merges",
    "tokenizer_pieces",
    "tokenizer_added",
    "tokenizer_files",
    "tokenizer",
    "lines",
    "messages",
    "forms",
    "templates",
    "chat_template",
    "rows",
    "tokenizing",
    "row_flags",
    "hashed_files",
    "judgements",
    "workers",
    "blocks",
    "cache_directory",
    "cache",
    "batch",
)
__getattr__ = exports(
    __name__, load_preferences="rows", parse_row="rows", BadRow="messages", load_tokenizer="tokenizer"
)
