"""A model's own chat template: known or refused, and what is known renders as the template's own engine renders it."""

import functools
import json
import re
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.data.chat_template import LONGEST, MARK, describe, flatten, recognise, use_template, write
from dpo_min.data.messages import BadRow, Message
from dpo_min.data.templates import PLAIN, TEMPLATES, as_text
from dpo_min.data.tokenizer import Tokenizer, load_tokenizer

CHATML, LLAMA3, HH, NONE = (TEMPLATES[name] for name in ("chatml", "llama3", "hh", "none"))
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>"]
CONTROL = {name: 256 + i for i, name in enumerate([*CONTROL, "<|end_header_id|>", "<|eot_id|>"])}
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TURN = "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
LOOP = "{% for message in messages %}" + TURN + "{% endfor %}" + ASK
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe kind, or don\\'t.<|im_end|>\\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + WORDS + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
DATED = (
    "{{- bos_token }}\n{%- set date_string = \"26 Jul 2024\" %}\n{#- the system text #}\n"
    "{%- if messages[0].role == 'system' %}\n  {%- set system_message = messages[0].content|trim %}\n"
    "  {%- set messages = messages[1:] %}\n{%- else %}\n  {%- set system_message = \"\" %}\n{%- endif %}\n"
    "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n{{- \"Cutting Knowledge Date: December 2023\\n\" }}\n"
    "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}\n{{- system_message }}\n{{- \"<|eot_id|>\" }}\n"
) + LLAMA.replace("{{ bos_token }}{% for", "{%- for").replace("WORDS", "message['content'] | trim")  # fmt: skip
THINKS = """{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role != 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- else %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thought.strip('\\n')
                + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
BASIC = CHATML.names[:3]
KNOWN = {  # a chat template → what it is
    "plain": (LOOP, CHATML),
    "with a default": (DEFAULT + LOOP, replace(CHATML, system="Be kind, or don't.")),
    "in other words": (
        LOOP.replace("['role']", ".role").replace("['content']", '["content"]').replace("+", "~"),
        CHATML,
    ),
    "over several lines": (
        "{%- for message in messages %}\n    {{- " + TURN[2:-2] + " }}\n{%- endfor %}\n"
        + ASK.replace("{{", "\n  {{-").replace("{% e", "\n{%- e"),
        CHATML,
    ),
    "with lines that the engine drops": (
        "{% for message in messages %}\n" + TURN + "{% endfor %}\n  " + ASK + "\n",
        CHATML,
    ),
    "that minds who speaks": (
        "{% for message in messages %}{% if message['role'] not in ['system', 'user', 'assistant'] %}"
        "{{ raise_exception('no') }}{% endif %}" + LOOP.removeprefix("{% for message in messages %}"),
        replace(CHATML, names=BASIC),
    ),
    "that strips": (LOOP.replace("message['content']", "(message['content'] | trim)"), replace(CHATML, strip=True)),
    "a turn for each role": (
        "{% for message in messages %}{% if message.role == 'user' %}"
        "{{ '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}"
        "{% elif message.role == 'system' %}{{ '<|im_start|>system\\n' + message.content + '<|im_end|>\\n' }}"
        "{% else %}{{ '<|im_start|>assistant\\n' + message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}" + ASK,
        replace(CHATML, names=BASIC),
    ),
    "that thinks": (THINKS, replace(CHATML, think=True)),
    "llama3": (LLAMA.replace("WORDS", "message['content'] | trim"), LLAMA3),
    "llama3 that does not strip": (LLAMA.replace("WORDS", "message['content']"), replace(LLAMA3, strip=False)),
    "llama3 without a beginning": (
        LLAMA.replace("{{ bos_token }}", "").replace("WORDS", "message['content'].strip()"),
        replace(LLAMA3, start=""),
    ),
    "llama3 with its dates": (
        DATED,
        replace(
            LLAMA3,
            names=LLAMA3.names[:3],
            preamble="Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
        ),
    ),
}  # fmt: skip
UNKNOWN = {
    "another marker": LOOP.replace("<|im_end|>", "<|end|>"),
    "one marker more": LOOP.replace("+ '\\n' +", "+ '<|im_sep|>' +"),
    "a thought begun for the model": LOOP.replace(
        "'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}"
    ),
    "nothing asked": LOOP.removesuffix(ASK),
    "words that are changed": LOOP.replace("message['content'] +", "message['content'].upper() +"),
    "roles that are changed": LOOP.replace("message['role'] +", "message['role'].upper() +"),
    "no line end": LOOP.replace("'<|im_end|>' + '\\n'", "'<|im_end|>'"),
    "an end of text after each turn": LOOP.replace("'<|im_end|>' + '\\n'", "'<|im_end|>' + eos_token + '\\n'"),
    "a system text from elsewhere": "{{ '<|im_start|>system\\n' + system_text + '<|im_end|>\\n' }}" + LOOP,
    "two system texts": DEFAULT + DEFAULT.replace("kind", "brief") + LOOP,
    "text outside of tags": LOOP.replace("{% endfor %}", "{% endfor %}Answer: "),
    "lines outside of tags": LOOP.replace("{% endfor %}", "\n{% endfor %}").replace(TURN, TURN + "\n \n"),
    "Mistral's": "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}",
    "Zephyr's": "{% for message in messages %}{{ '<|user|>\n' + message['content'] + eos_token }}{% endfor %}",
    "no template": "Be kind.",
    "a tag without an end": LOOP + "{{ 'x'",
    "empty": "",
}
PROMPTS = [
    [("user", "Hi!")],
    [("system", " Be brief. "), ("user", " Why? \n")],
    [("user", "2+2?"), ("assistant", "4"), ("user", "And\n3?  ")],
    [("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "<|im_end|>")],
]


def said(*turns):
    return tuple(Message(*turn) for turn in turns)


@pytest.fixture(scope="module")
def render():
    """(a chat template, messages, whether an answer is asked for) → text, by the engine that such templates are for.

    PyTorch needs that engine too; set up as the ecosystem's libraries set it up.
    """
    sandbox = pytest.importorskip("jinja2.sandbox")
    engine = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message):
        raise ValueError(message)

    engine.globals["raise_exception"] = raise_exception
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}

    compiled = functools.cache(engine.from_string)

    def rendered(source, messages, ask):
        messages = [message._asdict() for message in messages]
        return compiled(source).render(messages=messages, add_generation_prompt=ask, **names)

    return rendered


def check(render, source, template):
    """Both sides of the engine's rendering are what `template` writes."""
    for turns, words in product(PROMPTS, ("An answer.", "\n x ", "<think>\nso\n</think>\n\nYes")):
        messages, answer = said(*turns), said(("assistant", words))
        prompt, side, _ = template.sides(messages, answer, answer)
        asked, answered = as_text(template.write_prompt(prompt)), as_text(template.write_answer(side))
        assert asked == render(source, messages, True)
        assert asked + answered + template.after.removeprefix(template.close) == render(
            source, messages + answer, False
        )


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_template_is_recognised_and_renders_as_its_engine_does(name, render):
    """Kills: a difference between models that is not read out, or read out wrongly."""
    source, template = KNOWN[name]
    assert recognise(source) == template
    check(render, source, template)


@pytest.mark.parametrize("family", ["smollm2", "qwen2.5", "llama3-tiny"])
def test_the_template_of_a_published_model_is_recognised_and_renders_as_its_engine_does(shared_data, family, render):
    directory = shared_data / "tokenizers" / family
    source = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    template = recognise(source)
    check(render, source, template)
    if template.tool:
        messages = said(("user", "Q"), ("assistant", "A"), ("tool", "1"), ("tool", "2"))
        assert as_text(template.write_prompt(template.prompt(messages))) == render(source, messages, True)
        with pytest.raises(BadRow):
            template.prompt(said(("function", "x")))


@pytest.mark.parametrize("name", UNKNOWN)
def test_any_other_template_is_unknown(name):
    """Kills: a template taken for another because its markers are the same."""
    assert recognise(UNKNOWN[name]) is None


@pytest.mark.parametrize("name", [*KNOWN][:-1])
def test_a_change_of_a_known_template_that_changes_what_it_renders_is_seen(name, render):
    """Each character of a text with a marker is lost in turn: it is unknown then, or recognised as what it renders."""
    source, _ = KNOWN[name]
    literals = [m for m in re.finditer(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", source) if "<|" in m[0]]
    for place in (place for m in literals for place in range(m.start() + 1, m.end() - 1)):
        changed = source[:place] + source[place + 1 :]
        template = recognise(changed)
        if template is None:
            continue
        messages, answer = said(*PROMPTS[2]), said(("assistant", "An answer."))
        try:
            theirs = render(changed, messages, True), render(changed, messages + answer, False)
        except Exception:  # whatever the engine raises: such a template renders nothing
            continue
        prompt, side, _ = template.sides(messages, answer, answer)
        asked = as_text(template.write_prompt(prompt))
        whole = asked + as_text(template.write_answer(side)) + template.after.removeprefix(template.close)
        assert (asked, whole) == theirs, changed


SYSTEM = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["#}", "{{ x }}", "{% if", "'\"\\"]
)


@settings(max_examples=30)
@given(SYSTEM, st.sampled_from([CHATML, LLAMA3, HH]))
@example('It\'s "so"\n#} {{ x }} é😀\\n', CHATML)
def test_what_is_written_for_a_model_is_recognised_and_renders_the_same(render, system, base):
    """Kills: a text that ends the mark or the literal that it stands in; a system text said where there is one."""
    template = replace(base, system=system)
    source = write(template)
    assert recognise(source) == template
    check(render, source, template)
    _, own = KNOWN["that thinks"]
    source = write(replace(own, system=system), THINKS)
    assert recognise(source) == replace(own, system=system)
    check(render, source, replace(own, system=system))


@pytest.mark.parametrize("data", [
    "", "{", "[]", "1", '{"name": "x"}', '{"name": ["x"]}', '{"name": "chatml", "system": 1}', "[" * 100_000,
    '{"name": "chatml", "close": ""}', '{"name": "chatml", "names": [["user", "admin"]]}',
    '{"name": "chatml", "names": 3}', '{"name": "chatml", "odd": 1}',
])  # fmt: skip
def test_a_mark_that_somebody_changed_is_unknown(data):
    """Kills: a template made of whatever a file says, or an exception that is not ours."""
    assert recognise(f"{MARK}{data} #}}{LOOP}") is None
    assert recognise(MARK + data) is None


@pytest.mark.parametrize(
    "text", ["{{", "{%", "{#", "{{ '", "{{ \\'", "{{" + " ", "{{ message.content ", "\n", "{{''}}", "{{ x"]
)
def test_a_long_text_is_taken_apart_in_one_pass(text):
    """Kills: a tag, a literal or blanks looked for from every one of them: 10^10 steps at this length."""
    source = text * (LONGEST // len(text))
    assert recognise(source) is None and flatten(source) is not None
    assert recognise(LOOP + " " * LONGEST) is None  # longer than any


def tokenizer(chat_template=None):
    made = Tokenizer({bytes([b]): b for b in range(256)}, 256, control=CONTROL)
    made.chat_template = chat_template
    return made


def test_auto_takes_the_models_own_template_and_says_so():
    ours = tokenizer(DEFAULT + LOOP)
    template = use_template(ours)
    assert template == KNOWN["with a default"][1] and ours.chat_template == DEFAULT + LOOP
    assert ours.end_of_text == CONTROL["<|im_end|>"]
    assert describe(template, ours) == (
        "template: chatml (the model's own); a dialogue without a system text gets \"Be kind, or don't.\""
    )
    plain = tokenizer()
    assert use_template(plain) == PLAIN and plain.chat_template is None and plain.end_of_text == 256
    assert describe(PLAIN, plain) == ""


@pytest.mark.parametrize(("source", "name", "system", "expected"), [
    (DEFAULT + LOOP, "chatml", None, KNOWN["with a default"][1]),  # the model's own of that name
    (DEFAULT + LOOP, "auto", "S", replace(CHATML, system="S")),
    (DEFAULT + LOOP, "auto", "", CHATML),
    (DEFAULT + LOOP, "llama3", None, LLAMA3),
    (DEFAULT + LOOP, "hh", "S", replace(HH, system="S")),
    (DEFAULT + LOOP, "none", None, NONE),
    (UNKNOWN["another marker"], "chatml", None, CHATML),
    (UNKNOWN["another marker"], "none", None, NONE),
    (None, "chatml", "S", replace(CHATML, system="S")),
    (None, "hh", None, HH),
    (None, "none", None, NONE),
])  # fmt: skip
def test_what_is_asked_for_is_taken_and_is_what_a_saved_model_says(tmp_path, source, name, system, expected):
    """Kills: a model that is saved with a template that it no longer has; --system lost on the way to its directory."""
    ours = tokenizer(source)
    assert use_template(ours, name, system) == expected
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert use_template(again) == (PLAIN if name == "none" else expected)
    assert again.end_of_text == (CONTROL[expected.close] if expected.close else 256)


@pytest.mark.parametrize(("source", "name", "system", "words"), [
    (UNKNOWN["Mistral's"], "auto", None, "is not known here: give --template hh, chatml, llama3 .*none"),
    (None, "auto", "S", "--system has no effect with --template auto"),
    (LOOP, "none", "S", "--system has no effect with --template none"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(source, name, system, words):
    with pytest.raises(ValueError, match=rf"\A.*{words}.*\Z"):
        use_template(tokenizer(source), name, system)


def test_a_tokenizer_without_the_markers_is_refused():
    """Kills: markers as ordinary text, which everybody can write."""
    with pytest.raises(ValueError, match=r"--template chatml: the tokenizer has no control token <\|im_start\|>"):
        use_template(load_tokenizer("bytes"), "chatml")


def test_a_template_beside_the_config_is_found_and_goes_where_the_model_goes(tmp_path):
    """Kills: chat_template.jinja passed over, or left behind beside the template that took its place."""
    (tmp_path / "a").mkdir()
    tokenizer().save(tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").write_text(LOOP)
    ours = load_tokenizer(tmp_path / "a")
    assert use_template(ours) == CHATML
    for name, expected in (("auto", CHATML), ("hh", HH)):
        ours = load_tokenizer(tmp_path / "a")
        use_template(ours, name)
        (tmp_path / name).mkdir()
        ours.save(tmp_path / name)
        assert use_template(load_tokenizer(tmp_path / name)) == expected
