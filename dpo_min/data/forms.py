r"""One decoded row → its prompt, chosen and rejected side, each a text or a tuple of messages.

These forms are read, whatever the mixture:

    {"prompt": "…", "chosen": "…", "rejected": "…"}      text; or each a list of messages, or one message
    {"chosen": "…", "rejected": "…"}                     the prompt is what both sides share (the HH form)
    {"chosen": [messages], "rejected": [messages]}       the same: the prompt is the turns that both share
    {"prompt": "…", "chosen": [messages], …}             where the prompt may stand inside both lists, too
    {"question" or "instruction" and "input": "…", …}    beside the two sides, and "system" beside any prompt
    {"conversations" or "messages": [messages], …}       a dialogue as the prompt

A message is {"role", "content"} or, as ShareGPT has it, {"from", "value"}. No column that carries text is skipped: one
that is neither read nor known to be about the row (a score, an id, a source) is refused by name.
"""

from typing import NamedTuple

from dpo_min.data.messages import (
    ASSISTANT,
    BadRow,
    Message,
    as_side,
    as_turns,
    check_unread,
    is_dialogue,
    shown,
    split_messages,
    split_prompt,
    turns,
)

DIALOGUES = "conversations", "messages"
PROMPTS = ("prompt", "question", "instruction", "input", *DIALOGUES)  # of which the first one that is there is read
SYSTEM = ("system", "system_prompt")
VERDICTS = (  # pairs whose better side is named in another column
    ("human_ref_A", "human_ref_B"), ("better_response_id",), ("response_0", "response_1"), ("answer_0", "answer_1"),
    ("response_a", "response_b"), ("response1", "response2"), ("preference_strength",),
)  # fmt: skip
OTHERS = {  # columns of data sets that hold no pairs → what they are
    ("completion", "label"): "single judgements, which --loss-type kto reads",
    ("responses", "pairs"): "answers and pairs of their numbers: put the answers of each pair into chosen and rejected",
    ("responses",): "ranked lists of answers, which --loss-type plackett_luce reads",
    ("winner",): "two answers and a verdict: put the winner into chosen, and the other answer into rejected",
    ("choice",): "several answers and a verdict: put the winner into chosen, and another answer into rejected",
    ("answers",): "several answers and a verdict: put the winner into chosen, and another answer into rejected",
    **dict.fromkeys(VERDICTS, "two answers and a verdict: put the better one into chosen, and the other into rejected"),
}


class Columns(NamedTuple):
    """Under which names a row's sides are found; None: as the forms say."""

    prompt: str | None = None
    chosen: str = "chosen"
    rejected: str = "rejected"
    ignore: tuple[str, ...] = ()  # not read although they hold text


NAMES = Columns()  # without any flag


def read_row(row, columns=NAMES):
    """(prompt, chosen, rejected, the form in a few words, columns that were not read) of a decoded row.

    Raises:
        BadRow: with the reason, and the flag by which such a row is read.
    """
    if not isinstance(row, dict):
        raise BadRow(f"expected an object with chosen and rejected, found {type(row).__name__}")
    names = [*([columns.prompt] if columns.prompt else ()), columns.chosen, columns.rejected]
    missing = [name for name in names if name not in row]
    if missing:
        raise BadRow(f"missing key: {', '.join(map(shown, missing))}{looks_like(row)}")
    chosen, rejected = (as_side(row[name], name) for name in (columns.chosen, columns.rejected))
    if type(chosen) is not type(rejected):
        kinds = ", ".join(f"{shown(name)} is {type(row[name]).__name__}" for name in names[-2:])
        raise BadRow(f"the two sides must be both text or both messages: {kinds}")
    if not (chosen and rejected):
        raise BadRow(f"empty completion: {'rejected' if chosen else 'chosen'}")
    # A side that does not begin with an answer holds the prompt, too.
    whole = isinstance(chosen, tuple) and "assistant" not in [side[0].role for side in (chosen, rejected)]
    prompt, used = find_prompt(row, columns, whole)
    system, more = find_system(row, used)
    shape = ("whole dialogues" if whole else "messages") if isinstance(chosen, tuple) else "text"
    prompt, chosen, rejected = put_together(prompt, system, chosen, rejected, whole)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not (any(message.content for message in side) if isinstance(side, tuple) else side):
            raise BadRow(f"empty completion: {name}")
    check_text(prompt=prompt, chosen=chosen, rejected=rejected)
    if chosen == rejected:
        raise BadRow("chosen equals rejected")
    doubtful = not used and isinstance(prompt, str) and not is_dialogue(prompt)  # what was asked may be anywhere
    read = {*used, *more, *names} | ({"offset"} if isinstance(row.get("offset"), int | float) else set())
    read |= {"tie"} if isinstance(row.get("tie"), bool) else set()
    unread = check_unread(row, read, columns.ignore, (prompt, chosen, rejected), doubtful)
    return prompt, chosen, rejected, f"{' + '.join([*more, *used, *names[-2:]])} ({shape})", unread


def read_prompt(value, columns=NAMES):
    """The prompt in a decoded value: a text, a list of messages, or a row that has a prompt, with sides or without.

    Raises:
        BadRow: with the reason.
    """
    if isinstance(value, str | list):
        return as_side(value, "prompt")
    if not isinstance(value, dict):
        raise BadRow(f"expected a text, a list of messages or an object, found {type(value).__name__}")
    if columns.chosen in value and columns.rejected in value:
        return read_row(value, columns)[0]
    if columns.prompt and columns.prompt not in value:
        raise BadRow(f"missing key: {shown(columns.prompt)}")
    prompt, used = find_prompt(value, columns, whole=False)
    if prompt is None:
        raise BadRow("missing key: prompt; --prompt-column names the column that holds it")
    system, more = find_system(value, used)
    prompt = put_together(prompt, system, "a", "b", whole=False)[0]
    check_text(prompt=prompt)
    check_unread(value, {*used, *more}, columns.ignore, (prompt,))
    return prompt


def find_prompt(row, columns, whole):
    """(the prompt or None, the columns that it is made of); `whole`: whether the sides hold it, too."""
    if columns.prompt:
        return as_side(row[columns.prompt], columns.prompt), [columns.prompt]
    present = [name for name in PROMPTS if name == "prompt" or isinstance(row.get(name), str | list)]
    present = [name for name in present if name in row and (row[name] or (name == "prompt" and not whole))]
    name = present[0] if present else None
    if name is None or (name in DIALOGUES and (whole or isinstance(row[name], str))):
        return None, []
    prompt, used = as_side(row[name], name), [name]
    if name == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
        prompt, used = f"{prompt}\n{row['input']}", [name, "input"]
    if name in ("question", "instruction", "input") and isinstance(prompt, str):
        prompt = (Message("user", prompt),)
    return prompt, used


def find_system(row, used):
    """(the system message of a row as a tuple, the column that it stands in)."""
    for name in SYSTEM:
        if name not in used and isinstance(row.get(name), str) and row[name]:
            return (Message("system", row[name]),), [name]
    return (), []


def put_together(prompt, system, chosen, rejected, whole):
    """(prompt, chosen, rejected), each a text or messages, of what was found in a row."""
    if prompt is None and isinstance(chosen, str):
        prompt, chosen, rejected = split_prompt(chosen, rejected)
        if system and not is_dialogue(prompt):
            raise BadRow("a system text without a prompt; name the prompt's column with --prompt-column")
    elif whole:
        shared, *sides = split_messages(chosen, rejected)
        asked = (Message("user", prompt),) if isinstance(prompt, str) else prompt or ()
        stripped = [(role, content.strip()) for role, content in shared]
        if any((role, content.strip()) not in stripped for role, content in asked):
            raise BadRow("chosen and rejected are whole dialogues that do not share the prompt beside them")
        prompt, (chosen, rejected) = shared, sides
    elif prompt is None:
        raise BadRow("missing key: prompt (the messages of both sides begin with an answer); --prompt-column names it")
    if isinstance(chosen, tuple) and isinstance(prompt, str):
        prompt = turns(prompt.removesuffix(ASSISTANT)) if is_dialogue(prompt) else (Message("user", prompt),)
    elif isinstance(chosen, str) and isinstance(prompt, tuple):
        chosen, rejected = (Message("assistant", chosen),), (Message("assistant", rejected),)
    elif isinstance(chosen, str) and system:
        prompt, chosen, rejected = as_turns(prompt, chosen, rejected)
    for side in (chosen, rejected):
        for place, message in (("start", side[0]), ("end", side[-1])) if isinstance(side, tuple) else ():
            if message.role != "assistant":
                raise BadRow(f"a completion must {place} with an assistant message, not {message.role}")
    if isinstance(prompt, tuple) and prompt and prompt[-1].role == "assistant":
        raise BadRow("the last turn of the prompt is the assistant's: nothing is asked")
    if system and prompt[:1] != system:
        if prompt and prompt[0].role == "system":
            raise BadRow("the row has two different system texts, in its column system and in its messages")
        prompt = system + prompt
    return prompt, chosen, rejected


def check_text(**sides):
    """BadRow where a side cannot be written as UTF-8."""
    for name, side in sides.items():
        try:
            "".join([side] if isinstance(side, str) else [message.content for message in side]).encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"{name} holds half of a surrogate pair, which is not text") from error


def looks_like(row):
    """What a row without both sides looks like, and the flags that would read it."""
    for names, what in OTHERS.items():
        if all(name in row for name in names):
            return f"; the rows look like {what}"
    said = f"; the columns are {', '.join(map(shown, row))[:200]}"
    sides = [side for side in ("chosen", "rejected") if side not in row]
    found = [next((name for name in row if side[:6] in name.lower()), None) for side in sides]
    if None in found:
        return f"{said}; --chosen-column and --rejected-column name those of the better and of the worse answer"
    flags = "".join(f" --{side}-column {shown(name)}" for side, name in zip(sides, found, strict=True))
    return f"{said}:{flags} would read them" if flags else said
