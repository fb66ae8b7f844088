"""`Preference` → `TokenizedPair`: token ids, and what is cut where they are too many."""

from collections import Counter
from dataclasses import dataclass

from dpo_min.data.templates import PLAIN


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of a `Preference`; the prompt is shared and every id of a completion is scored."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    source: str = ""
    offset: float = 0.0  # ODPO's Δ, in log-odds: by how much y_w was judged better
    tie: bool = False  # neither was judged better

    @property
    def completions(self):
        """Both answers, the better one first."""
        return self.chosen_ids, self.rejected_ids

    @property
    def num_tokens(self):
        """Tokens of the pair, the shared prompt counted once."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


def tokenize(preferences, tokenizer, max_length, max_prompt_length=None, template=PLAIN):
    """Tokenize and truncate; returns (pairs, counts).

    The counts are of pairs that were "truncated", "dropped" for want of a completion token, and "equal": dropped, too,
    because both sides have the same ids, mostly because what differs was cut off. Such a pair would teach nothing.
    """
    pairs, counts = [], Counter(truncated=0, dropped=0, equal=0)
    for preference in preferences:
        whole = encode_pair(preference, tokenizer, template)
        kept = truncate(*whole, max_length, max_prompt_length)
        if kept is None or kept[1] == kept[2]:
            counts["dropped" if kept is None else "equal"] += 1
            continue
        counts["truncated"] += kept != whole
        pairs.append(TokenizedPair(*kept, preference.source, preference.offset, preference.tie))
    return pairs, counts


def encode_pair(preference, tokenizer, template=PLAIN):
    """(prompt ids, chosen ids, rejected ids) of a `Preference`, nothing cut.

    Prompt and completion are tokenized apart and concatenated, so that a pair shares its prompt's ids. A completion
    ends with one token that closes it, the template's or end-of-text.
    """
    sides = (encode(template.write_answer(side), tokenizer) for side in (preference.chosen, preference.rejected))
    end = [] if template.close else [tokenizer.end_of_text]
    return encode_prompt(preference.prompt, tokenizer, template), *(ids + end for ids in sides)


def encode_prompt(prompt, tokenizer, template=PLAIN):
    """The ids of a prompt as `Template.sides` leaves it.

    A prompt that is a text begins with the token that the tokenizer begins every text with, if it does. An empty
    prompt becomes one end-of-text token, because the first scored token needs a predecessor.
    """
    ids = encode(template.write_prompt(prompt), tokenizer)
    if not template.close and tokenizer.begin_of_text is not None:
        ids = [tokenizer.begin_of_text, *ids]
    return ids or [tokenizer.end_of_text]


def encode(pieces, tokenizer):
    """Ids of (text, whether it is a control token) pieces; text between two control tokens is encoded as a whole."""
    ids, words = [], ""
    for text, is_control in pieces:
        if is_control:
            ids += [*tokenizer.encode(words), tokenizer.control[text]]
            words = ""
        else:
            words += text
    return ids + tokenizer.encode(words)


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
