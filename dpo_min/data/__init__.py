"""From a line of JSON to the tensors of a step: row → `Preference` → `TokenizedPair` → `Batch`."""

READING_ORDER = ("tokenizer", "rows", "cache", "batch")
