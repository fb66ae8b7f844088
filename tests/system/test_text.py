"""What others wrote: nothing of it can act where it is shown, and nothing of it is lost."""

from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.system.text import harmless, one_line, visible

ACTING = st.sampled_from("\x1b\r\b\x9b\u202e\0<>&\"'é👩")
WILD = st.text(alphabet=st.characters(exclude_categories=["Cs"]) | ACTING, max_size=30)


@given(WILD)
@example("\x1b]0;title\x07 \x9b31m \r\n \u2066 \u00ad \x7f\ttab")
def test_what_is_visible_holds_no_character_that_acts_and_none_is_lost(text):
    """Kills: an escape sequence or a carriage return of the model reaching the terminal; C1 controls forgotten."""
    shown = visible(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert shown.count("\n") == text.count("\n")
    assert shown == "".join(c if c.isprintable() else visible(c) for c in text) and all(visible(c) for c in text)


@given(st.text(alphabet=st.characters() | ACTING))
@example("deux\u00a0mots\u202f! می\u200cخواهم 👩\u200d🚀\tx\n\u3000")
def test_what_is_harmless_reads_as_it_was_written(text):
    """Kills: <U+00A0> in every French sentence; a separator of lines, or a tab of C1, taken for a blank."""
    shown = harmless(text)
    for c in shown:
        assert (
            c.isprintable()
            or c in "\n\t\u200c\u200d"
            or (c.isspace() and c not in "\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029")
        )
    if not any(c in text for c in "\x1b\r\x07"):
        assert harmless(shown) == shown
    assert harmless("deux\u00a0mots\u202f! 👩\u200d🚀\tx\n") == "deux\u00a0mots\u202f! 👩\u200d🚀\tx\n"


@given(st.text(alphabet=st.characters() | ACTING, max_size=3000))
@example("x" * 10**6)
@example("a\nb\r\n\x1b[2J")
def test_one_line_is_one_short_line_whose_ends_are_kept(text):
    """Kills: a message of 20 MB; a message of two lines; one whose way out, at its end, is cut off."""
    shown = one_line(text)
    assert shown.isprintable() and len(shown) <= 10 * 600
    assert shown == "".join(map(one_line, text)) or (len(text) > 600 and one_line(text[-200:]) in shown)
    assert shown.startswith(one_line(text[:400]))
