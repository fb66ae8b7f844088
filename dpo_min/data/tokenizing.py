"""`Preference` → `TokenizedPair`: token ids, and what is cut where they are too many."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of a `Preference`; the prompt is shared and every id of a completion is scored."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    source: str = ""
    offset: float = 0.0  # ODPO's Δ, in log-odds: by how much y_w was judged better

    @property
    def num_tokens(self):
        """Tokens of the pair, the shared prompt counted once."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


def tokenize(preferences, tokenizer, max_length, max_prompt_length=None):
    """Tokenize and truncate; return (pairs, number truncated, number dropped for want of a completion token).

    Prompt and completion are tokenized apart and concatenated, so that a pair shares its prompt's ids.
    A completion that keeps its end is closed by one end-of-text token; an empty prompt becomes one
    end-of-text token, because the first scored token needs a predecessor.
    """
    pairs, truncated, dropped = [], 0, 0
    end = tokenizer.end_of_text
    columns = ([getattr(p, side) for p in preferences] for side in ("prompt", "chosen", "rejected"))
    ids = zip(*(tokenizer.encode_batch(texts) for texts in columns), strict=True)
    for preference, (prompt, chosen, rejected) in zip(preferences, ids, strict=True):
        whole = (prompt or [end], [*chosen, end], [*rejected, end])
        kept = truncate(*whole, max_length, max_prompt_length)
        if kept is None:
            dropped += 1
            continue
        truncated += kept != whole
        pairs.append(TokenizedPair(*kept, preference.source))
    return pairs, truncated, dropped


def truncate(prompt_ids, chosen_ids, rejected_ids, max_length, max_prompt_length=None):
    """Shorten a pair so that prompt + completion has at most `max_length` tokens on both sides.

    If prompt + longer completion is too long, the prompt loses tokens at its start, down to
    `max_prompt_length` (default: half of `max_length`); what is still too long of a completion is cut
    at its end, and with it its end-of-text. Returns (prompt_ids, chosen_ids, rejected_ids), or None if
    no completion token would be left.
    """
    if max_prompt_length is None:
        max_prompt_length = max_length // 2
    excess = len(prompt_ids) + max(len(chosen_ids), len(rejected_ids)) - max_length
    if excess > 0:
        keep = max(len(prompt_ids) - excess, min(len(prompt_ids), max_prompt_length))
        prompt_ids = prompt_ids[len(prompt_ids) - keep :]
    room = max_length - len(prompt_ids)
    if room < 1 or not prompt_ids:
        return None
    return prompt_ids, chosen_ids[:room], rejected_ids[:room]
