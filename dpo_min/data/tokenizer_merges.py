"""Which tokens the merges of a vocabulary make, and that tiktoken, which knows ids alone, makes the same.

A file lists merges: two tokens that become one wherever they meet, the first in the list first. tiktoken merges what
has the lowest id, of whichever two parts. Both agree on every text if (1) each token that merging makes out of its own
bytes is made last from two parts that are a merge, (2) these last merges are listed in the order of ids, and (3) every
token that merging does not make, and that tiktoken is told of, is left in three parts or more. For wherever a token
appears in a text, what happened within its bounds before is what happens to its own bytes alone.
"""

from itertools import pairwise

MAX_WORK = 2**26  # steps, at most the sum of the tokens' squared lengths; GPT-2's takes 3 million
NEVER = 2**63  # the rank of two tokens that are not merged


def printable_bytes():
    """GPT-2's one printable character for each byte, in which vocabularies are written."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}


BYTE_TO_CHAR = printable_bytes()
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def spell(token):
    """A token's bytes in GPT-2's alphabet."""
    return "".join(BYTE_TO_CHAR[b] for b in token)


def halves(token, get):
    """The parts of a token after every merge but the last: two, or more where no merge applies to them.

    `get(pair, NEVER)` is the rank of two neighbours. Only the ranks beside a merge are asked for anew.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    ranks = [get(pair, NEVER) for pair in pairwise(parts)]
    while len(parts) > 2 and (lowest := min(ranks)) != NEVER:
        i = ranks.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del ranks[i]
        if i > 0:
            ranks[i - 1] = get((parts[i - 1], parts[i]), NEVER)
        if i < len(ranks):
            ranks[i] = get((parts[i], parts[i + 1]), NEVER)
    return parts


def find_merges(ranks):
    """The two parts that each longer token, bytes, was merged from, in order of rank: what tiktoken does not keep.

    Raises:
        ValueError: a token is not a merge of two others.
    """
    merges = []
    for token in sorted(ranks, key=ranks.get):
        parts = halves(token, lambda pair, default: ranks.get(pair[0] + pair[1], default))
        if len(parts) > 2:
            raise ValueError(f"tokenizer: token {ranks[token]} ({token!r}) is not a merge of two earlier tokens")
        if len(parts) == 2:
            merges.append(tuple(parts))
    return merges


def divide(vocab, merges):
    """(token → id of those that merging makes, token → parts that merging leaves of it); tokens in GPT-2's alphabet.

    Raises:
        ValueError: the merges are not those of one vocabulary, or tiktoken could not keep their order.
    """
    order = {(first, second): rank for rank, (first, second) in enumerate(merges)}
    if len(order) < len(merges):
        raise ValueError("do not make one byte-level BPE: a merge is listed twice")
    if sum(len(token) ** 2 for token in vocab) > MAX_WORK:
        raise ValueError("do not make one byte-level BPE: a token is too long")
    for first, second in order:
        if not {first, second, first + second} <= vocab.keys():
            raise ValueError(f"{first!r} and {second!r} are merged, but the vocabulary lacks one, or what they make")
    made, left, ranks = {}, {}, []
    for token in sorted(vocab, key=vocab.get):
        parts = halves(token, order.get)
        rank = order.get(tuple(parts))
        if len(parts) == 1 or rank is not None:
            made[token] = vocab[token]
            ranks += [] if rank is None else [rank]
        else:
            left[token] = len(parts)
    if ranks != sorted(ranks):
        raise ValueError("do not make one byte-level BPE: merges stand in another order than the ids of their tokens")
    return made, left
