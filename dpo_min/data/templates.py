r"""Chat templates as data: what stands before and after a role's words, and what closes an answer.

    hh       \n\nHuman: Hi\n\nAssistant: Hello⏹       ordinary text; ⏹ is the end-of-text
    chatml   ▸user\nHi◂\n▸assistant\nHello◂           ▸ is <|im_start|>, ◂ is <|im_end|>
    llama3   ◈▸user▹\n\nHi◂▸assistant▹\n\nHello◂      <|begin_of_text|>, <|start_header_id|>, …, <|eot_id|>

Markers such as <|im_end|> become control ids. What people and models say is ordinary text always, so that nobody can
end a turn by writing the marker. Between two control ids text is encoded as a whole, as other programs do it.
"""

import re
from dataclasses import dataclass, replace
from itertools import groupby

from dpo_min.data.messages import ROLES, SPEAKERS, BadRow, Message, as_turns, is_dialogue, turns

CONTROL = re.compile(r"(<\|[A-Za-z_]+\|>)")


@dataclass(frozen=True)
class Template:
    """How a dialogue is written. A prompt ends with the assistant's `before`; its answer follows, then `close`."""

    name: str
    before: str = ""  # before a role's words; {} is what the role is called
    after: str = ""  # after them
    close: str = ""  # how `after` begins, which ends an answer and is scored; nothing: by the tokenizer's end-of-text
    start: str = ""  # once, before everything
    gap: str = ""  # between `before` and the words, where an answer begins with it
    names: tuple = tuple((role, role) for role in ROLES)  # (role, what it is called)
    system: str = ""  # the system text of a dialogue that has none
    preamble: str = ""  # what stands before any system text, and also without one
    tool: str = ""  # how a tool's words {} stand in a user's turn; nothing: they are a turn of their own
    strip: bool = False  # words lose the blanks around them
    think: bool = False  # an answer begins with a thought, which may be empty; earlier answers lose theirs
    bare: bool = False  # texts are no turns and stay as they are

    def sides(self, prompt, chosen, rejected):
        """The sides of a row as they are written here: texts that stay texts, or messages that only lack markers.

        Raises:
            BadRow: the row has no place in this template.
        """
        if isinstance(prompt, str) and self.before and not self.bare:
            if self.name == "hh" and is_dialogue(prompt):  # it is written already
                first = self.opening("system")
                lacking = self.system and not prompt.startswith(first)
                return (first + self.gap + self.system + prompt if lacking else prompt), chosen, rejected
            prompt, chosen, rejected = as_turns(prompt, chosen, rejected)
        if isinstance(prompt, str):
            return prompt, chosen, rejected
        if not self.before:
            if [message.role for message in (*prompt, *chosen, *rejected)] != ["user", "assistant", "assistant"]:
                raise BadRow("a dialogue of several turns needs a template: --template hh, chatml or llama3")
            return prompt[0].content, chosen[0].content, rejected[0].content
        return self.prompt(prompt), self.answer(chosen), self.answer(rejected)

    def ask(self, prompt):
        """A prompt alone as `sides` leaves it.

        Raises:
            BadRow: nothing is asked, or it has no place in this template.
        """
        if isinstance(prompt, str):
            said, answers = turns(prompt) if is_dialogue(prompt) else (), ("a", "b")
        else:
            said, answers = prompt, [(Message("assistant", words),) for words in "ab"]
        found = self.sides(prompt, *answers)[0]
        if isinstance(found, tuple) and said and said[-1].role == "assistant" and said[-1].content:
            raise BadRow("the last turn of the prompt is the assistant's: nothing is asked")
        return found

    def shown(self, prompt):
        """A prompt as people see it: the text that it is, or its dialogue as it is written."""
        return prompt if isinstance(prompt, str) else as_text(self.write_prompt(self.ask(prompt)))

    def prompt(self, messages):
        """The messages of a prompt, with a system text where there has to be one."""
        if (self.system or self.preamble) and [message.role for message in messages[:1]] != ["system"]:
            messages = (Message("system", self.system), *messages)
        return self.turns(messages)

    def answer(self, messages):
        """The messages of one side."""
        *earlier, last = self.turns(messages)
        return (*earlier, last._replace(content=with_thought(messages[-1].content)) if self.think else last)

    def turns(self, messages):
        """The messages with their words as they are written; BadRow where a role has no place here."""
        found = []
        for role, group in groupby(messages, key=lambda message: message.role):
            if role == "tool" and self.tool:
                found.append(Message("user", "\n".join(self.tool.replace("{}", message.content) for message in group)))
                continue
            if role not in dict(self.names):
                raise BadRow(f"--template {self.name} has no place for the role {role}")
            for _, words in group:
                words = words.rsplit("</think>", 1)[-1].lstrip("\n") if self.think and "</think>" in words else words
                words = words.strip() if self.strip else words
                found.append(Message(role, self.preamble + words if role == "system" else words))
        return tuple(found)

    def opening(self, role):
        """What stands before the words of a role."""
        return self.before.format(dict(self.names)[role])

    def write_prompt(self, prompt):
        """A prompt of `sides`, up to where the answer begins: [(text, whether it is a control token)]."""
        if isinstance(prompt, str):
            return [(prompt, False)]
        pieces = marks(self.start)
        for role, words in prompt:
            pieces += [*marks(self.opening(role)), (self.gap + words, False), *marks(self.after)]
        return pieces + marks(self.opening("assistant"))

    def write_answer(self, side):
        """A side, up to its end, `close` included: [(text, whether it is a control token)]."""
        if isinstance(side, str):
            return [(side, False), *marks(self.close)]
        pieces = []
        for role, words in side:
            pieces += [*marks(self.after + self.opening(role) if pieces else ""), (self.gap + words, False)]
        return pieces + marks(self.close)


def marks(text):
    """A template's own text: [(text, whether it is a control token)]."""
    return [(part, bool(i % 2)) for i, part in enumerate(CONTROL.split(text)) if part]


def as_text(pieces):
    """What is written, as text."""
    return "".join(text for text, _ in pieces)


def with_thought(words):
    """The words of an answer after its thought in its own lines; without a thought after an empty one."""
    thought = words.split("</think>")[0].split("<think>")[-1] if "</think>" in words else ""
    return f"<think>\n{thought.strip(chr(10))}\n</think>\n\n{words.split('</think>')[-1].lstrip(chr(10))}"


HH_NAMES = tuple((role, speaker) for speaker, role in SPEAKERS.items())
TEMPLATES = {
    "none": Template("none"),
    "hh": Template("hh", before="\n\n{}:", gap=" ", names=HH_NAMES),
    "chatml": Template("chatml", before="<|im_start|>{}\n", after="<|im_end|>\n", close="<|im_end|>"),
    "llama3": Template(
        "llama3",
        before="<|start_header_id|>{}<|end_header_id|>\n\n",
        after="<|eot_id|>",
        close="<|eot_id|>",
        start="<|begin_of_text|>",
        strip=True,
    ),
}
PLAIN = replace(TEMPLATES["hh"], bare=True)  # without a chat template: texts as they stand, messages in the form of HH
