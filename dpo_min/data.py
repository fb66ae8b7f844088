r"""From a line of JSON to token ids: JSONL → `Preference` → `TokenizedPair`.

Three forms of row are accepted:

    {"prompt": "…", "chosen": "…", "rejected": "…"}     text
    {"chosen": "…", "rejected": "…"}                    the prompt is what both sides share (the HH form)
    the first form, each value a list of messages       {"role": "system|user|assistant", "content": "…"}

Messages become text by the template of HH, one block a message: "\n\nHuman: …", "\n\nAssistant: …",
"\n\nSystem: …". The prompt ends with "\n\nAssistant:" and a completion starts with " " and its content.

This file does not import PyTorch: a bad row is named before PyTorch has been loaded.
"""

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

ASSISTANT = "\n\nAssistant:"
SPEAKERS = {"system": "\n\nSystem:", "user": "\n\nHuman:", "assistant": ASSISTANT}
ERRORS_SHOWN = 10


@dataclass(frozen=True)
class Preference:
    """One judgement: after `prompt`, `chosen` was preferred to `rejected`. `source` is "file:line"."""

    prompt: str
    chosen: str
    rejected: str
    source: str = ""


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of a `Preference`; the prompt is shared and every id of a completion is scored."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    source: str = ""

    @property
    def num_tokens(self):
        """Tokens of the pair, the shared prompt counted once."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


class BadRow(ValueError):
    """A row that is not a preference; the message is the reason."""


def parse_row(row):
    """The prompt, chosen and rejected text of one decoded row, of any of the three forms.

    Raises:
        BadRow: with the reason.
    """
    if not isinstance(row, dict):
        raise BadRow(f"expected an object with chosen and rejected, found {type(row).__name__}")
    missing = [key for key in ("chosen", "rejected") if key not in row]
    if missing:
        raise BadRow(f"missing key: {', '.join(missing)}")
    sides = [row[key] for key in ("prompt", "chosen", "rejected") if key in row]
    if all(isinstance(side, str) for side in sides):
        prompt, chosen, rejected = sides if "prompt" in row else split_prompt(*sides)
    elif all(isinstance(side, list) for side in sides):
        if "prompt" not in row:
            raise BadRow("missing key: prompt (rows of messages need all three keys)")
        prompt, chosen, rejected = render_prompt(sides[0]), *(render_completion(side) for side in sides[1:])
    else:
        kinds = ", ".join(
            f"{key} is {type(row[key]).__name__}" for key in ("prompt", "chosen", "rejected") if key in row
        )
        raise BadRow(f"the values must be all text or all lists of messages: {kinds}")
    for name, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if not text and name != "prompt":
            raise BadRow(f"empty completion: {name}")
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise BadRow(f"{name} holds half of a surrogate pair, which is not text")
    if chosen == rejected:
        raise BadRow("chosen equals rejected")
    return prompt, chosen, rejected


def split_prompt(chosen, rejected):
    r"""Divide two texts that share their beginning: prompt + completion gives back each text exactly.

    The cut is after the last "\n\nAssistant:" where both texts then share one prompt, otherwise after
    their longest common prefix; in either case so that neither completion is empty.
    """
    if not chosen or not rejected:
        raise BadRow(f"empty completion: {'rejected' if chosen else 'chosen'}")
    if chosen == rejected:
        raise BadRow("chosen equals rejected")
    cut = chosen.rfind(ASSISTANT) + len(ASSISTANT)
    shared = ASSISTANT in chosen and chosen.rfind(ASSISTANT) == rejected.rfind(ASSISTANT)
    if not shared or chosen[:cut] != rejected[:cut] or cut in (len(chosen), len(rejected)):
        limit = min(len(chosen), len(rejected)) - 1
        cut = next((i for i in range(limit) if chosen[i] != rejected[i]), limit)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def render_messages(messages):
    """Each message as its speaker's header, a space and its content."""
    text = ""
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadRow('a message must be {"role": …, "content": text}')
        if message.get("role") not in [*SPEAKERS]:
            raise BadRow(f"unknown role {message.get('role')!r}; known: {', '.join(SPEAKERS)}")
        text += f"{SPEAKERS[message['role']]} {message['content']}"
    return text


def render_prompt(messages):
    """A prompt's messages, and the header under which the assistant answers."""
    return render_messages(messages) + ASSISTANT


def render_completion(messages):
    """A completion's messages, without the first header: the prompt ends with it."""
    text = render_messages(messages)
    if messages and messages[0]["role"] != "assistant":
        raise BadRow(f"a completion must start with an assistant message, not {messages[0]['role']}")
    if not messages or not any(message["content"] for message in messages):
        return ""
    return text.removeprefix(ASSISTANT)


def read_rows(path):
    """Yield (line number, line as bytes) of a .jsonl or .jsonl.gz file, without blank lines.

    Raises:
        ValueError: the file is missing, a directory, unreadable, or broken gzip.
    """
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def load_preferences(paths, skip_bad_rows=False):
    """Every preference of the files, in order, and the number of bad rows that were skipped.

    Raises:
        ValueError: a file cannot be read or holds no row; or rows are bad and `skip_bad_rows` is off:
            the message names the first ten as `file:line: reason` and gives the total.
    """
    preferences, bad = [], []
    for path in paths:
        before = len(preferences) + len(bad)
        for number, line in read_rows(path):
            source = f"{path}:{number}"
            try:
                row = json.loads(line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8"))
                preferences.append(Preference(*parse_row(row), source))
            except UnicodeDecodeError as error:
                bad.append(f"{source}: not UTF-8: {error.reason} at byte {error.start}")
            except json.JSONDecodeError as error:
                bad.append(f"{source}: not JSON: {error.msg} at column {error.colno}")
            except RecursionError:
                bad.append(f"{source}: not JSON that can be read: nested too deeply")
            except ValueError as error:  # BadRow, and integers too long for Python to convert
                bad.append(f"{source}: {error}")
        if len(preferences) + len(bad) == before:
            raise ValueError(f"{path}: holds no rows")
    if bad and not skip_bad_rows:
        shown = bad[:ERRORS_SHOWN] + ["…"] * (len(bad) > ERRORS_SHOWN)
        raise ValueError(
            "\n".join(shown) + f" ({len(bad)} of {len(bad) + len(preferences)} rows are bad; "
            "mend them, or leave them out with --skip-bad-rows)"
        )
    if not preferences:
        raise ValueError(f"{', '.join(map(str, paths))}: no usable row: all {len(bad)} are bad")
    return preferences, len(bad)


def split_preferences(preferences, eval_fraction, seed):
    """Divide into (train, eval): a row's side depends on its own text and the seed, on no other row."""
    sides = ([], [])
    for preference in preferences:
        text = "\0".join((str(seed), preference.prompt, preference.chosen, preference.rejected))
        digest = hashlib.sha256(text.encode()).digest()
        is_eval = int.from_bytes(digest[:8]) < eval_fraction * 2**64
        sides[is_eval].append(preference)
    return sides


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


def fingerprint(paths):
    """SHA-256 of the files' bytes: the data a run was made from."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()
