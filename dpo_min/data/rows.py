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

from dpo_min.system.text import Lines

ASSISTANT = "\n\nAssistant:"
SPEAKERS = {"system": "\n\nSystem:", "user": "\n\nHuman:", "assistant": ASSISTANT}
ERRORS_SHOWN = 10
MAX_ROW = 2**25  # bytes of a line; a file without line ends is refused before it fills the memory
# A .gz may expand to so many bytes, or to so many times its size if that is more: text expands three to thirty times.
EXPANSION, EXPANSION_FREE = 100, 2**26


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
    offset: float = 0.0  # ODPO's Δ, in log-odds: by how much y_w was judged better

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
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"{name} holds half of a surrogate pair, which is not text") from error
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


def read_rows(path, opener=open):
    """Yield (line number, line as bytes, position) of a .jsonl or .jsonl.gz file, without blank lines.

    The position is how many bytes of the file have been read so far, 0 where that is not known, as of a pipe.
    `opener` takes the place of `open`.

    Raises:
        ValueError: the file is missing, a directory, unreadable, or broken gzip; it holds no row, a row longer than
            `MAX_ROW`, or gzip that expands beyond all text.
    """
    empty, read = True, 0
    try:
        with opener(path, "rb") as raw, gzip.GzipFile(fileobj=raw) if is_gzip(path) else raw as lines:
            seekable = raw.seekable()
            for number, line in enumerate(iter(lambda: lines.readline(MAX_ROW + 1), b""), start=1):
                read += len(line)
                if len(line) > MAX_ROW:
                    raise ValueError(f"{path}:{number}: a row of more than {MAX_ROW} bytes")
                if lines is not raw and seekable and read > max(EXPANSION_FREE, EXPANSION * raw.tell()):
                    raise ValueError(f"{path}:{number}: expands to more than {EXPANSION} times its size")
                if line.strip():
                    empty = False
                    yield number, line, raw.tell() if seekable else 0
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    if empty:
        raise ValueError(f"{path}: holds no rows")


def is_gzip(path):
    """Whether a file is read as gzip, which its name decides."""
    return str(path).endswith(".gz")


def unreadable(path, error):
    """The ValueError for a file that cannot be read."""
    return ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")


def parse_line(number, line):
    """The prompt, chosen and rejected text of the line of that number, which a byte order mark may precede if it is 1.

    Raises:
        BadRow: with the reason.
    """
    try:
        return parse_row(json.loads(line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")))
    except BadRow:
        raise
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadRow("not JSON that can be read: nested too deeply") from error
    except ValueError as error:  # integers too long for Python to convert
        raise BadRow(str(error)) from error


def load_preferences(paths, skip_bad_rows=False):
    """Every preference of the files, in order, and the number of bad rows that were skipped.

    Raises:
        ValueError: a file cannot be read or holds no row; or as `check_rows` says.
    """
    preferences, bad = [], []
    for path in paths:
        for number, line, _ in read_rows(path):
            source = f"{path}:{number}"
            try:
                preferences.append(Preference(*parse_line(number, line), source))
            except BadRow as reason:
                bad.append(f"{source}: {reason}")
    check_rows(paths, len(preferences), len(bad), bad[:ERRORS_SHOWN], skip_bad_rows)
    return preferences, len(bad)


def check_rows(paths, good, bad, shown, skip_bad_rows):
    """Raise ValueError where rows are bad and `skip_bad_rows` is off, or where no row is good.

    Args: `good` and `bad` count rows; `shown` has the first `ERRORS_SHOWN` bad ones as "file:line: reason".
    """
    if bad and not skip_bad_rows:
        raise Lines(
            "\n".join([*shown, *["…"] * (bad > len(shown))]) + f" ({bad} of {bad + good} rows are bad; "
            "mend them, or leave them out with --skip-bad-rows)"
        )
    if not good:
        raise ValueError(f"{', '.join(map(str, paths))}: no usable row: all {bad} are bad")


def split_preferences(preferences, eval_fraction, seed):
    """Divide into (train, eval): a row's side depends on its own text and the seed, on no other row."""
    sides = ([], [])
    for preference in preferences:
        sides[split_digest(preference, seed) < eval_fraction * 2**64].append(preference)
    return sides


def split_digest(preference, seed):
    """64 bits by which a row is held out: uniform, the row's own, and others under another seed."""
    text = "\0".join((str(seed), preference.prompt, preference.chosen, preference.rejected))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


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
    """SHA-256 of the files' bytes, one file after the other: the data a run was made from.

    Raises:
        ValueError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        except OSError as error:
            raise unreadable(path, error) from error
    return digest.hexdigest()
