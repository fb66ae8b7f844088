r"""One decoded row → prompt, chosen and rejected.

Three forms of row are accepted:

    {"prompt": "…", "chosen": "…", "rejected": "…"}     text
    {"chosen": "…", "rejected": "…"}                    the prompt is what both sides share (the HH form)
    the first form, each value a list of messages       {"role": "system|user|assistant", "content": "…"}

Messages become text by the template of HH, one block a message: "\n\nHuman: …", "\n\nAssistant: …",
"\n\nSystem: …". The prompt ends with "\n\nAssistant:" and a completion starts with " " and its content.
"""

ASSISTANT = "\n\nAssistant:"
SPEAKERS = {"system": "\n\nSystem:", "user": "\n\nHuman:", "assistant": ASSISTANT}


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
