"""Judgements that are no pair, from a line of JSON to token ids; their texts and messages are read as a pair's.

    {"prompt": "…", "responses": ["…", "…", "…"]}          a ranked list, the best answer first
    {"prompt": "…", "completion": "…", "label": true}      a thumb, up or down

They are kept in memory, and no cache is made of them.
"""

from collections import Counter
from dataclasses import dataclass

from dpo_min.data.chat_template import name_hh
from dpo_min.data.forms import PROMPTS, Columns, read_row
from dpo_min.data.hashed_files import Reading
from dpo_min.data.messages import BadRow, is_dialogue
from dpo_min.data.rows import ERRORS_SHOWN, Preference, check_rows, decoded, parse_files, reasons, split_digest
from dpo_min.data.templates import PLAIN
from dpo_min.data.tokenizing import encode_pair, truncate
from dpo_min.system.text import one_line

MOST = 100  # answers of a list
HELD_OUT = 1000  # rows that are enough to follow a run by


@dataclass(frozen=True)
class TokenizedAnswers:
    """Token ids of one prompt and K answers, best first; of a thumb K is 1, and `label` says whether it is up."""

    prompt_ids: list[int]
    completions: list[list[int]]
    label: bool | None = None
    source: str = ""

    @property
    def chosen_ids(self):
        """The best answer, which is what a supervised fit imitates."""
        return self.completions[0]

    @property
    def num_tokens(self):
        """Tokens of the row, the shared prompt counted once."""
        return len(self.prompt_ids) + sum(map(len, self.completions))


class Rows(list):
    """Rows in memory, with the hash of the files that they are from."""

    def __init__(self, rows, sha256):
        super().__init__(rows)
        self.sha256 = sha256


def split_row(row, kind):
    """(rows of pairs that hold the same texts, the label of a thumb) of a decoded row; kind is "lists" or "thumbs".

    A list becomes a pair of its best answer and each other one; a thumb a pair with an answer that nobody gave.

    Raises:
        BadRow: with the reason.
    """
    wanted = ("responses",) if kind == "lists" else ("completion", "label")
    missing = [key for key in wanted if not isinstance(row, dict) or key not in row]
    if missing:
        raise BadRow(f"missing key: {', '.join(missing)}")
    value, rest = row[wanted[0]], {key: row[key] for key in row if key not in wanted}
    if kind == "thumbs":
        if not isinstance(row["label"], bool):
            raise BadRow("label must be true or false")
        return [rest | {"chosen": value, "rejected": altered(value)}], row["label"]
    if not isinstance(value, list) or not 2 <= len(value) <= MOST:
        raise BadRow(f"responses must be a list of 2 to {MOST} answers, the best one first")
    if any(answer in value[:i] for i, answer in enumerate(value)):
        raise BadRow("two responses are equal")
    return [rest | {"chosen": value[0], "rejected": answer} for answer in value[1:]], None


def check_prompt(row, prompts, columns):
    """BadRow where a row's answers do not say what they answer: a text is not divided by what an answer shares."""
    named = columns.prompt or any(name in row for name in PROMPTS)
    if not named and isinstance(prompts[0], str) and not is_dialogue(prompts[0]):
        raise BadRow("missing key: prompt; --prompt-column names the column that holds it")
    if any(prompt != prompts[0] for prompt in prompts):
        raise BadRow("the responses do not share one prompt: they are whole dialogues that part at different turns")


def altered(completion):
    """Another completion, of the same form."""
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        last = completion[-1]
        said = {key: f"{last[key]}." for key in ("content", "value") if isinstance(last.get(key), str)}
        return [*completion[:-1], last | said]
    return f"{completion}." if isinstance(completion, str) else completion


def encode_row(preferences, label, tokenizer, template, limits):
    """(the row as token ids, whether it was cut), cut to (max_length, max_prompt_length) as its longest answer needs.

    None in the row's place where no answer is left, or two are the same after the cut.
    """
    pairs = [encode_pair(preference, tokenizer, template) for preference in preferences]
    prompt, completions = pairs[0][0], [pairs[0][1], *(rejected for *_, rejected in pairs if label is None)]
    longest = max(completions, key=len)
    kept = truncate(prompt, longest, longest, *limits)
    short = [ids[: len(kept[1])] for ids in completions] if kept else []
    if not kept or any(ids in short[:i] for i, ids in enumerate(short)):
        return None, False
    return TokenizedAnswers(kept[0], short, label, preferences[0].source), (kept[0], short) != (prompt, completions)


def read_files(paths, flags, tokenizer, template, counts):
    """([(64 bits by which a row is held out, the row)], the hash of the files), and what happened is counted.

    Raises:
        ValueError: a file cannot be read; a row is bad, and --skip-bad-rows off; no row is good.
    """
    columns = Columns(prompt=flags.prompt_column, ignore=tuple(flags.ignore_columns))
    good, bad, rows, reading = 0, [], [], Reading()

    def parse(line, source):
        with reasons(line):
            pairs, label = split_row(decoded(line), flags.rows)
            read = [read_row(pair, columns) for pair in pairs]
            check_prompt(pairs[0], [prompt for prompt, *_ in read], columns)
            return [Preference(*template.sides(*sides), source, unread=unread) for *sides, _, unread in read], label

    for preferences, label in parse_files(paths, parse, bad, reading.open):
        row, cut = encode_row(preferences, label, tokenizer, template, (flags.max_length, flags.max_prompt_length))
        prompt, good = preferences[0].prompt, good + 1
        counts.update(("unread", name) for name in preferences[0].unread)
        counts.update(cut=cut, lost=row is None, plain=isinstance(prompt, str) and not is_dialogue(prompt))
        rows += [(split_digest(preferences[0], flags.seed), row)] if row else []
    check_rows(paths, good, len(bad), bad[:ERRORS_SHOWN], flags.skip_bad_rows)
    counts["bad"] += len(bad)
    return rows, reading.sha256()


def read_judgements(flags, tokenizer, template=PLAIN):
    """Lists or thumbs, as `flags.rows` says: to train on, held out, and for the first fit, without the thumbs down.

    The tokenizer gets HH's chat template as `read_pairs` gives it.

    Raises:
        ValueError: as `read_files`, or no row is left to train on.
    """
    counts = Counter()
    rows, sha256 = read_files(flags.data, flags, tokenizer, template, counts)
    fraction = min(0.05, HELD_OUT / max(len(rows), 1)) if flags.eval_fraction is None else flags.eval_fraction
    most = 0 if flags.eval_data else fraction * 2**64
    train, held_out = (Rows([row for bits, row in rows if (bits < most) == side], sha256) for side in (False, True))
    sft, held = train, {bits for bits, _ in rows if bits < most}
    if flags.eval_data:
        rows, sha256 = read_files(flags.eval_data, flags, tokenizer, template, counts)
        held, held_out = {bits for bits, _ in rows}, Rows([row for _, row in rows], sha256)
    if flags.sft_data:
        rows, sha256 = read_files(flags.sft_data, flags, tokenizer, template, counts)
        sft = Rows([row for bits, row in rows if bits not in held], sha256)
        if len(sft) < len(rows):
            print(f"data: {len(rows) - len(sft)} rows of --sft-data left out: their prompts are held out")
    unread = [name[1] for name in counts if name[0] == "unread"]
    for name in flags.ignore_columns:
        if name not in unread:
            raise ValueError(f"--ignore-columns {name}: no row has this column")
    if unread:
        print(f"data: columns that are not read: {', '.join(map(one_line, unread))}")
    print(
        f"data: {len(train)} {flags.rows} to train on, {len(held_out)} held out; {counts['bad']} bad rows skipped, "
        f"{counts['cut']} truncated to {flags.max_length} tokens, {counts['lost']} dropped"
    )
    if not train:
        raise ValueError(f"{', '.join(flags.data)}: no row is left to train on")
    name_hh(tokenizer, template, counts["plain"])
    return train, held_out, Rows([row for row in sft if row.label is not False] or train, sft.sha256)
