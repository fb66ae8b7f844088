"""What people and models say to each other: messages, dialogues in the form of HH, and where an answer begins."""

import re
from typing import NamedTuple

ASSISTANT = "\n\nAssistant:"
SPEAKERS = {"System": "system", "Human": "user", "Assistant": "assistant"}  # of HH's dialogues
TURN = re.compile(r"\n\n(Human|Assistant|System):")
ROLES = ("system", "user", "assistant", "tool", "function")
ROLE_KEYS = {"role", "from"}  # of a message
ALIASES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "observation": "tool"}
ABOUT = set(  # words in the names of columns that say something about a row, and change nothing in it
    "id ids uuid idx index key hash md5 sha sha256 source sources dataset origin domain subset split category "
    "categories topic topics tag tags type kind lang language languages locale license url link model models author "
    "annotator annotators worker created date time timestamp version status score scores rating ratings rank ranks "
    "ranking reward rewards margin label labels quality difficulty length lengths tokens count num meta metadata "
    "rationale rationales reason reasons explanation feedback critique critiques judge judgement judgment preference "
    "winner generations responses completions candidates name weight".split()
)


class BadRow(ValueError):
    """A row that is not a preference; the message is the reason."""


class Message(NamedTuple):
    """What one speaker says."""

    role: str
    content: str


def as_side(value, name):
    """A text as it is, messages as a tuple of `Message`."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"the values must be text or lists of messages: {name} is {type(value).__name__}")
    return tuple(as_message(message) for message in value)


def as_message(message):
    """One message, as {"role", "content"} or {"from", "value"}."""
    if not isinstance(message, dict):
        raise BadRow('a message must be {"role": …, "content": text}')
    role_key, content_key = ("role", "content") if "role" in message else ("from", "value")
    role, content = message.get(role_key), message.get(content_key)
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text", "")) for part in content)
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise BadRow(f"a message holds {key}, which no template here renders")
    if not isinstance(content, str) or role_key not in message:
        raise BadRow('a message must be {"role": …, "content": text}, or {"from": …, "value": text}')
    role = ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise BadRow(f"unknown role {repr(role)[:60]}; known: {', '.join(ROLES)}")
    check_unread(message, {role_key, content_key}, (), (content,), what="a message's key")
    return Message(role, content)


def split_prompt(chosen, rejected):
    r"""Divide two texts that share their beginning: prompt + completion gives back each text exactly.

    The cut is after the last "\n\nAssistant:" where both texts then share one prompt, otherwise after
    their longest common prefix; in either case so that neither completion is empty.
    """
    cut = chosen.rfind(ASSISTANT) + len(ASSISTANT)
    shared = ASSISTANT in chosen and chosen.rfind(ASSISTANT) == rejected.rfind(ASSISTANT)
    if not shared or chosen[:cut] != rejected[:cut] or cut in (len(chosen), len(rejected)):
        limit = min(len(chosen), len(rejected)) - 1
        cut = next((i for i in range(limit) if chosen[i] != rejected[i]), limit)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def split_messages(chosen, rejected):
    """(the turns that both dialogues share, what is left of each): at least one message of either is left."""
    limit = min(len(chosen), len(rejected)) - 1
    cut = next((i for i in range(limit) if chosen[i] != rejected[i]), limit)
    if cut == 0 and "assistant" not in (chosen[0].role, rejected[0].role):
        raise BadRow("chosen and rejected are dialogues that share no turn: they answer different prompts")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def is_dialogue(text):
    """Whether a text is a dialogue in the form of HH."""
    return TURN.match(text) is not None


def turns(text):
    """The messages of a dialogue in the form of HH; one space after a speaker's name is not the speaker's."""
    parts = TURN.split(text)[1:]
    return tuple(Message(SPEAKERS[who], said.removeprefix(" ")) for who, said in zip(*[iter(parts)] * 2, strict=True))


def as_turns(prompt, chosen, rejected):
    """A text prompt with its sides as messages: the turns of a dialogue in the form of HH, or one user's turn."""
    if not is_dialogue(prompt):
        answers = ((Message("assistant", side),) for side in (chosen, rejected))
        return (Message("user", prompt),), *answers
    start = prompt if turns(prompt)[-1].role == "assistant" else prompt + ASSISTANT
    return split_messages(turns(start + chosen), turns(start + rejected))


def check_unread(row, used, ignored, sides, doubtful=False, what="column"):
    """The names of the columns that are not read; BadRow where one holds text that the sides do not.

    Columns about the row may hold text, but where it is `doubtful` what the prompt is, then no more than a word.
    """
    known = {text.strip() for side in sides for text in leaves(side)}
    unread = [name for name in row if name not in used]
    for name in unread:
        texts = [text for text in leaves(row[name]) if text.strip() not in known]
        about = ABOUT & set(re.split(r"[^a-z0-9]+", name.lower()))
        if name in ignored or not texts or (about and not (doubtful and any(len(text.split()) > 1 for text in texts))):
            continue
        way = f"; --prompt-column {shown(name)} reads it as the prompt, --ignore-columns {shown(name)} leaves it out"
        raise BadRow(f"{what} '{shown(name)}' holds text that nothing reads{way if what == 'column' else ''}")
    return tuple(unread)


def leaves(value):
    """Yield every text inside a value that is more than blanks, without the names of who says it."""
    if isinstance(value, str) and value.strip():
        yield value
    elif isinstance(value, Message):
        yield from leaves(value.content)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in ROLE_KEYS:
                yield from leaves(part)


def shown(name):
    """A column's name, for a message."""
    return name if name.isprintable() and len(name) <= 60 else ascii(name)[1:-1][:60]
