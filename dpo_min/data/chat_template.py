"""Which chat template a run uses: a model's own, recognised among those of `templates.py`, or HH's, or none.

In a model directory a chat template is a program of another language (Jinja). It is not run here. Its text is taken
apart into what it prints, and all that it says with markers has to be what a known template says: then the texts that
differ between models, such as the default system text, are read out of it. Any other is unknown, and refused.
"""

import json
import re
from dataclasses import asdict, replace

from dpo_min.data.templates import CONTROL, PLAIN, TEMPLATES
from dpo_min.data.tokenizer import load_tokenizer

LONGEST = 2**17  # characters of a chat template
MARK = "{# dpo_min "  # begins a template that was written here; its fields follow as JSON
# What stands for: the end of a printed text, who speaks, what is said, the same without blanks, anything else, bos.
BREAK, ROLE, WORDS, STRIPPED, VALUE, START = "\0\ue000\ue001\ue002\ue003\ue004"
SAID, TEXT = f"([{WORDS}{STRIPPED}])", rf"([^<{BREAK}{ROLE}-{START}]+)"
PART = re.compile(
    r"""(?P<role>\bmessages?(?:\[0\])?(?:\.role\b|\[(?:'role'|"role")\]))"""
    r"""|(?P<words>\(?\b(?:messages?(?:\[0\])?(?:\.content\b|\[(?:'content'|"content")\])|content\b)"""
    r"""(?P<strip>\s*\|\s*trim\b|\.strip\(\))?(?:\.lstrip\('\\n'\))?\)?)"""
    r"""|(?P<single>'(?:[^'\\]|\\.)*')|(?P<double>"(?:[^"\\]|\\.)*")|(?P<nothing>[+~\s]+)|(?P<bos>\bbos_token\b)"""
    r"""|(?P<word>\b(?:if|elif|else|endif|for|endfor|in|set|not|and|or|is)\b)|(?P<name>[A-Za-z_][\w.]*(?:\('\\n'\))?)|(?P<other>.)""",
    re.DOTALL,
)
TAG = re.compile(r"\{([{%#])(-?)")
# Name → what may follow the marker that opens a turn; a text in it is the default of the system.
FOLLOWS = {
    "chatml": rf"{ROLE}(?:\n{SAID}(?:<\|im_end\|>\n|{BREAK})|\n<think>\n{VALUE}\n</think>\n\n{SAID}|{BREAK})"
    rf"|(?:system|user|assistant)\n{SAID}<\|im_end\|>\n|system\n(?P<text>{TEXT})<\|im_end\|>\n"
    rf"|(?:system|assistant)\n{BREAK}|user{BREAK}",
    "llama3": rf"(?:{ROLE}|system|user|assistant)<\|end_header_id\|>\n\n{SAID}<\|eot_id\|>"
    rf"|system<\|end_header_id\|>\n\n(?P<text>{TEXT})<\|eot_id\|>"
    rf"|(?:system|user|assistant|ipython)<\|end_header_id\|>\n\n{BREAK}",
}
VARIES = {"start", "names", "system", "preamble", "tool", "strip", "think"}  # between models of one template
SPARE = {"<|eom_id|>", "<|python_tag|>"}  # markers of tools, which Llama's template may name
DATES = "Cutting Knowledge Date: December 2023\n"
TOOL = "<tool_response>\n{}\n</tool_response>"


def recognise(source):
    """The `Template` that a chat template in Jinja is; None where it is none of those that are known."""
    if source.startswith(MARK):
        return from_mark(source)
    flat = flatten(source) if len(source) <= LONGEST else ""
    for name, follows in FOLLOWS.items():
        base = TEMPLATES[name]
        markers = CONTROL.findall(base.start + base.before + base.after)
        opening = CONTROL.findall(base.before)[0]
        torn = re.search(r"<\||\|>", CONTROL.sub("", flat))  # a marker that lacks a character
        if opening in flat and not torn and {*CONTROL.findall(flat)} <= {*markers, *SPARE}:
            return read_out(base, source, flat, [re.match(follows, part) for part in flat.split(opening)[1:]])
    return None


def read_out(base, source, flat, turns):
    """`base` with the texts that `flat` has, None where something is not as there; `turns`: what is after openings."""
    head, tail = map(re.escape, base.before.split("{}"))
    turn = re.search(f"{head}(?:{ROLE}|user){tail}{SAID}{re.escape(base.after)}", flat)
    texts = {match["text"] for match in turns if match and match["text"]}
    if not turn or not all(turns) or len(texts) > 1 or base.before.format("assistant") + BREAK not in flat:
        return None
    if flat.count(base.close) > flat.count(base.after):
        return None
    date = re.search(rf"{BREAK}(\d\d \w\w\w \d\d\d\d){BREAK}", flat)
    dated = DATES in flat and f"Today Date: {VALUE}\n\n" in flat and date
    if base.before.format("system") + BREAK in flat and not dated and "tools" not in source:
        return None  # a system text that nobody can see here
    tools = "<tool_response>" in flat
    any_role = ROLE in turn[0] and not tools and not dated and "raise_exception" not in source
    return replace(
        base,
        start="<|begin_of_text|>" if START in flat or "<|begin_of_text|>" in flat else "",
        names=base.names if any_role else base.names[: 3 + tools],
        system=texts.pop() if texts else "",
        preamble=f"{DATES}Today Date: {date[1]}\n\n" if dated else "",
        tool=TOOL if tools else "",
        strip=turn[1] == STRIPPED,
        think=f"{ROLE}\n<think>\n" in flat,
    )


def flatten(source):
    """The texts that a template in Jinja prints, in the order of the source, with a sign for all else.

    Nothing where it prints text outside of its tags, or cannot be taken apart.
    """
    found, place, before = [], 0, "\n"  # what the last tag does to the blanks behind it
    while begin := TAG.search(source, place):
        kind = begin[1]
        if blanks_left(source[place : begin.start()], before, begin[2] or ("" if kind == "{" else " ")):
            return ""
        end = source.find({"{": "}}", "%": "%}", "#": "#}"}[kind], begin.end())
        if end < 0:
            return ""
        before = "-" if source[end - 1] == "-" else "" if kind == "{" else "\n"
        if kind != "#":
            found += [BREAK, *map(sign, PART.finditer(source, begin.end(), end)), BREAK]
        place = end + 2
    return (
        "" if blanks_left(source[place:].removesuffix("\n"), before, "") else re.sub(f"{BREAK}+", BREAK, "".join(found))
    )


def blanks_left(text, before, after):
    """What is printed of the text between two tags, as other programs set Jinja: trim_blocks and lstrip_blocks.

    Args: `before` is "-", or the line end that the tag before it takes with it; `after` is "-", or the blank if the
    tag behind it takes those that begin its line.
    """
    text = text.lstrip() if before == "-" else text.removeprefix(before)
    if after == "-":
        return text.rstrip()
    last = text.rstrip(" \t")
    return last if after and (not last or last.endswith("\n")) else text


def sign(part):
    """The text of a literal, or the sign for any other part of a tag."""
    kind = part.lastgroup
    if kind in ("single", "double"):
        known = {"n": "\n", "t": "\t", "r": "\r"}
        return re.sub(r"\\(.)", lambda escape: known.get(escape[1], escape[1]), part[0][1:-1], flags=re.DOTALL)
    if kind == "words":
        return STRIPPED if part["strip"] else WORDS
    return {"role": ROLE, "nothing": "", "bos": START, "name": VALUE}.get(kind, BREAK)


def from_mark(source):
    """The `Template` in the mark of a chat template that was written here; None where it is no longer one."""
    try:
        given = json.loads(source[len(MARK) : source.index("#}")])
        base = TEMPLATES[given.pop("name")]
        names = tuple((role, name) for role, name in given.get("names", base.names))
        template = replace(base, **given | {"names": names})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    typed = all(type(value) is type(getattr(base, name)) for name, value in vars(template).items())
    return template if typed and given.keys() <= VARIES and {*names} <= {*base.names} else None


def write(template, source=None):
    """A chat template in Jinja that says what `template` says, and is recognised by its mark; None where none does.

    Args: `source`, the template that it is but for its system text; without it, it is one of `TEMPLATES` but for that.
    """
    if template.bare or not template.before:
        return None
    base = asdict(TEMPLATES[template.name])
    fields = {name: value for name, value in asdict(template).items() if name == "name" or value != base[name]}
    mark = MARK + json.dumps(fields).replace("#", r"\u0023") + " #}"
    first = f"{{% set messages = [{{'role': 'system', 'content': {literal(template.system)}}}] + messages %}}"
    first = f"{{% if messages[0].role != 'system' %}}{first}{{% endif %}}" if template.system else ""
    if source:
        return mark + first + source
    (head, tail), said = template.before.split("{}"), "m.content|trim" if template.strip else "m.content"
    turn = f"{literal(head)} + {literal(dict(template.names))}[m.role] + {literal(tail + template.gap)}"
    turn += f" + ({said}) + {literal(template.after)}"
    asked = f"{{% if add_generation_prompt %}}{{{{ {literal(template.opening('assistant'))} }}}}{{% endif %}}"
    turns = f"{{% for m in messages %}}{{{{ {turn} }}}}{{% endfor %}}"
    return f"{mark}{{{{ {literal(template.start)} }}}}{first}{turns}{asked}"


def literal(value):
    """A text, or a dict of texts, as Jinja writes it."""
    return json.dumps(value, ensure_ascii=False)


def use_template(tokenizer, name="auto", system=None):
    """The `Template` that --template and --system ask for; `tokenizer` is told what closes an answer, and what to save.

    Raises:
        ValueError: the model's own chat template is not known, the tokenizer lacks a marker, or there is no system.
    """
    source = tokenizer.chat_template
    own = recognise(source) if source else PLAIN
    if own is None and name == "auto":
        raise ValueError(
            f"the model's chat_template is not known here: give --template {', '.join([*TEMPLATES][1:])} if it means "
            "the same as one of these, or --template none for rows of text that stay as they are"
        )
    template = own if own and (name == "auto" or (own.name == name and not own.bare)) else TEMPLATES[name]
    if system is not None and (template.bare or not template.before):
        raise ValueError(f"--system has no effect with --template {name}, where no role has a turn; leave it out")
    template = template if system is None else replace(template, system=system)
    written = template.start + template.before.replace("{}", "") + template.after
    lacking = [marker for marker in CONTROL.findall(written) if marker not in tokenizer.control]
    if lacking:
        raise ValueError(f"--template {template.name}: the tokenizer has no control token {lacking[0]}")
    of_own = own and template.system and template == replace(own, system=template.system)
    tokenizer.chat_template = source if template == own else write(template, source if of_own else None)
    if template.close:
        tokenizer.end_of_text = tokenizer.control[template.close]
    return template


def name_hh(tokenizer, template, plain):
    """Give a tokenizer without a chat template HH's, to be saved with, where every prompt of the data is in that form.

    Args: `template` is what `use_template` found, and `plain` counts the prompts that are not.
    """
    if template.bare and not plain:
        tokenizer.chat_template = write(TEMPLATES["hh"])


def check_reference(directory, tokenizer, template, model):
    """ValueError where the tokenizer of a reference's directory is another than `tokenizer`, that of `model`."""
    theirs = load_tokenizer(directory)
    if template.close:  # answers of both are closed by the template's token
        theirs.end_of_text = tokenizer.end_of_text
    if theirs.fingerprint() != tokenizer.fingerprint():
        raise ValueError(f"--reference {directory}: its tokenizer is not that of {model}")


def describe(template, tokenizer):
    """Which template is in use, in a line; nothing where rows stay as they are."""
    if template.bare:
        return ""
    own = " (the model's own)" if tokenizer.chat_template and not tokenizer.chat_template.startswith(MARK) else ""
    system = f"; a dialogue without a system text gets {template.system!r}" if template.system else ""
    return f"template: {template.name}{own}{system}"
