"""The page in a real browser: keyboard and mouse, reload and back, two tabs, kills, and texts of every kind."""

import json
from contextlib import contextmanager

import pytest

from tests.browser import chromium, needs_browser, until
from tests.labels.serving import rows_of, serving, write_candidates

pytestmark = needs_browser
SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&amp;"
ARABIC = "كان الفيلم جميلا جدا، وأعجبني التصوير."
CODE = "Use this:\n\n```python\nif x:\n\treturn   1  # ok\n```\nand not `that`."


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(autouse=True)
def one_window(request):
    """Each test begins with one window, of the usual size."""
    yield
    browser = request.getfixturevalue("browser")
    for handle in browser.window_handles[1:]:
        browser.switch_to.window(handle)
        browser.close()
    browser.switch_to.window(browser.window_handles[0])
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get("about:blank")


def texts(browser):
    """(prompt, left, right) that are shown."""
    return tuple(browser.execute_script(f"return document.getElementById('{i}').textContent") for i in IDS)


IDS = "prompt", "left", "right"


def open_page(browser, url):
    browser.get(url)
    return until(browser, "shown !== null && shown.showing")


def press(browser, key, done=None):
    """Press a key, and wait until the next pair is shown, or until what `done` says."""
    from selenium.webdriver.common.action_chains import ActionChains

    before = browser.execute_script("return shown && shown.showing")
    ActionChains(browser).send_keys(key).perform()
    return until(browser, done or "!busy && (shown && shown.showing) !== arguments[0]", before)


def count(browser):
    return browser.execute_script("return document.getElementById('count').textContent")


def test_the_keyboard_alone_labels_ties_skips_undoes_and_changes(browser, tmp_path):
    """Kills: a key that does something else, a label of the side that was not shown there."""
    from selenium.webdriver.common.keys import Keys

    out = tmp_path / "prefs.jsonl"
    with serving(write_candidates(tmp_path / "c.jsonl", 5), out) as served:
        open_page(browser, served.url)
        shown = []
        for key in "aB=s":
            shown.append(texts(browser))
            press(browser, key)
        rows = rows_of(out)
        assert [row["prompt"] for row in rows] == [prompt for prompt, *_ in shown[:3]]
        assert rows[0]["chosen"] == shown[0][1] and rows[1]["chosen"] == shown[1][2] and rows[2]["tie"]
        assert count(browser) == "4 of 5 pairs"
        press(browser, "u")  # the skip
        assert texts(browser) == shown[3] and count(browser) == "3 of 5 pairs"
        press(browser, "a")
        press(browser, Keys.ARROW_LEFT, "!busy && shown.place === 3")
        press(browser, Keys.ARROW_LEFT, "!busy && shown.place === 2")
        press(browser, Keys.ARROW_LEFT, "!busy && shown.place === 1")
        assert texts(browser) == shown[1]
        pressed = "document.querySelector('[aria-pressed=true]').dataset.choice"
        assert browser.execute_script(f"return {pressed}") == "B"
        press(browser, "a", "!busy && shown.place === undefined")
        changed = {row["prompt"]: row["chosen"] for row in rows_of(out)}
        assert changed[shown[1][0]] == shown[1][1] and len(changed) == 4
        press(browser, "b", "!busy && shown === null")
        assert "All pairs are done" in browser.execute_script("return document.getElementById('said').textContent")
    assert len(rows_of(out)) == 5


def test_a_focused_button_is_pressed_by_enter_and_every_control_can_be_reached_by_tab(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    with serving(write_candidates(tmp_path / "c.jsonl", 3), tmp_path / "p.jsonl") as served:
        open_page(browser, served.url)
        reached = []
        for _ in range(9):
            ActionChains(browser).send_keys(Keys.TAB).perform()
            active = "document.activeElement"
            reached.append(browser.execute_script(f"return {active}.dataset.choice || {active}.id"))
            if reached[-1] == "B":
                left = texts(browser)
                press(browser, Keys.ENTER)
        assert {"prompt", "left", "right", "A", "=", "B", "S"} <= {*reached}
    assert rows_of(tmp_path / "p.jsonl")[0]["chosen"] == left[2]


def test_the_mouse_labels(browser, tmp_path):
    with serving(write_candidates(tmp_path / "c.jsonl", 4), tmp_path / "p.jsonl") as served:
        before, shown = open_page(browser, served.url), []
        for choice in "AB":
            shown.append(texts(browser))
            browser.find_element("css selector", f"[data-choice='{choice}']").click()
            before = until(browser, "!busy && shown.showing !== arguments[0] && shown.showing", before)
        browser.find_element("id", "undo").click()
        until(browser, "!busy && shown.showing !== arguments[0]", before)
        assert texts(browser) == shown[1]
    assert [row["chosen"] for row in rows_of(tmp_path / "p.jsonl")] == [shown[0][1]]


def test_a_key_that_is_held_down_and_a_shortcut_of_the_browser_label_nothing_more(browser, tmp_path):
    with serving(write_candidates(tmp_path / "c.jsonl", 9), tmp_path / "p.jsonl") as served:
        open_page(browser, served.url)
        for more in ({"repeat": True}, {"ctrlKey": True}, {"metaKey": True}, {"altKey": True}):
            event = json.dumps({"key": "a", "bubbles": True} | more)
            browser.execute_script(f"document.body.dispatchEvent(new KeyboardEvent('keydown', {event}))")
        press(browser, "b")
    assert len(rows_of(tmp_path / "p.jsonl")) == 1


def test_reload_and_back_lose_and_double_nothing(browser, tmp_path):
    with serving(write_candidates(tmp_path / "c.jsonl", 6), tmp_path / "p.jsonl", "--repeat", 0) as served:
        open_page(browser, served.url)
        press(browser, "a")
        browser.refresh()
        until(browser, "shown !== null")
        press(browser, "b")
        browser.get("about:blank")
        browser.back()
        until(browser, "typeof shown !== 'undefined' && shown !== null")
        assert count(browser) == "2 of 6 pairs"
        for left in range(4):
            press(browser, "a", "!busy && (shown === null || shown.showing !== arguments[0])")
            assert count(browser) == f"{3 + left} of 6 pairs"
    rows = rows_of(tmp_path / "p.jsonl")
    assert len(rows) == len({row["prompt"] for row in rows}) == 6


def test_two_tabs_never_show_the_same_pair(browser, tmp_path):
    with serving(write_candidates(tmp_path / "c.jsonl", 12), tmp_path / "p.jsonl", "--repeat", 3) as served:
        open_page(browser, served.url)
        browser.switch_to.new_window("tab")
        open_page(browser, served.url)
        seen, shown = [], {}
        for i in range(8):
            for handle in browser.window_handles:
                browser.switch_to.window(handle)
                shown[handle] = browser.execute_script("return shown.showing")
            assert len({*shown.values()}) == 2
            browser.switch_to.window(browser.window_handles[i % 2])
            seen.append(browser.execute_script("return shown.showing"))
            press(browser, "a")
        assert len({*seen}) == 8


def test_a_killed_server_loses_nothing_and_the_page_says_what_was_not_saved(browser, tmp_path):
    """Kills: a page that goes on as if the choice had been taken."""
    candidates, out = write_candidates(tmp_path / "c.jsonl", 6), tmp_path / "p.jsonl"
    said = "document.getElementById('said').textContent"
    with serving(candidates, out) as served:
        open_page(browser, served.url)
        first = texts(browser)
        press(browser, "a")
        second = texts(browser)
        served.kill()
        press(browser, "b", f"!busy && {said}.includes('not saved')")
        assert texts(browser) == second
    assert [row["chosen"] for row in rows_of(out)] == [first[1]]
    with serving(candidates, out) as served:
        open_page(browser, served.url)
        assert texts(browser) == second and count(browser) == "1 of 6 pairs"
        press(browser, "b")
    assert [row["chosen"] for row in rows_of(out)] == [first[1], second[2]]


def test_ten_thousand_candidates(browser, tmp_path):
    with serving(write_candidates(tmp_path / "c.jsonl", 10_000), tmp_path / "p.jsonl") as served:
        open_page(browser, served.url)
        for key in "ab=as":
            press(browser, key)
        assert count(browser) == "5 of 10000 pairs"
        assert "a minute" in browser.execute_script("return document.getElementById('pace').textContent")


@contextmanager
def showing(browser, tmp_path, text):
    """The page shows a pair with this text on one side; the id of the box that it is in."""
    write_candidates(tmp_path / "c.jsonl", 1, lambda i: [text, "plain words"])
    with serving(tmp_path / "c.jsonl", tmp_path / "p.jsonl") as served:
        open_page(browser, served.url)
        yield IDS[texts(browser).index(text)]


def test_markup_is_text_and_nothing_leaves_this_machine(browser, tmp_path):
    """Kills: innerHTML, and a policy that the page itself breaks."""
    browser.get_log("browser"), browser.get_log("performance")
    with showing(browser, tmp_path, SCRIPT) as box:
        assert browser.execute_script("return window.hacked") is None
        assert browser.execute_script(f"return document.getElementById('{box}').children.length") == 0
        assert browser.get_log("browser") == []
        press(browser, "a", "!busy && shown === null")
    sent = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"}
    assert asked and all(url.startswith(("http://127.0.0.1:", "data:", "about:")) for url in asked)
    assert SCRIPT in rows_of(tmp_path / "p.jsonl")[0].values()


def test_a_very_long_answer_is_shown_whole_and_both_sides_scroll_together(browser, tmp_path):
    long = "\n".join(f"line {i} " + "x" * 80 for i in range(1100))[:100_000]
    write_candidates(tmp_path / "c.jsonl", 1, lambda i: [long, "\n".join(map(str, range(300)))])
    with serving(tmp_path / "c.jsonl", tmp_path / "p.jsonl") as served:
        open_page(browser, served.url)
        assert long in texts(browser)
        for side, other in (("left", "right"), ("right", "left")):
            for share in (1, 0.5, 0):
                moved, box = (f"document.getElementById('{name}')" for name in (side, other))
                room = "({0}.scrollHeight - {0}.clientHeight)".format
                browser.execute_script(f"{moved}.scrollTop = {share} * {room(moved)}")
                until(browser, f"Math.abs({box}.scrollTop / {room(box)} - {share}) < 0.02")
        assert browser.execute_script("return document.documentElement.scrollHeight <= innerHeight")
        press(browser, "b", "!busy && shown === null")
    assert long in rows_of(tmp_path / "p.jsonl")[0].values()


def test_arabic_runs_from_right_to_left_and_english_beside_it_does_not(browser, tmp_path):
    direction = "getComputedStyle(document.getElementById(arguments[0])).direction"
    with showing(browser, tmp_path, ARABIC) as box:
        assert browser.execute_script(f"return {direction}", box) == "rtl"
        assert browser.execute_script(f"return {direction}", "right" if box == "left" else "left") == "ltr"


def test_code_keeps_its_blanks_and_has_a_font_of_equal_widths(browser, tmp_path):
    with showing(browser, tmp_path, CODE) as box:
        code = f"document.querySelector('#{box} code')"
        style = f"getComputedStyle({code})"
        assert browser.execute_script(f"return {style}.whiteSpaceCollapse || {style}.whiteSpace").startswith("pre")
        assert "monospace" in browser.execute_script(f"return {style}.fontFamily")
        assert browser.execute_script(f"return {code}.textContent").startswith("```python")


def test_on_a_phone_everything_fits_and_can_be_touched(browser, tmp_path):
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    write_candidates(tmp_path / "c.jsonl", 2, lambda i: ["word " * 400, "x" * 2000])
    with serving(tmp_path / "c.jsonl", tmp_path / "p.jsonl") as served:
        before = open_page(browser, served.url)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        for choice in "AB=S":
            box = browser.execute_script(
                f"return document.querySelector(`[data-choice='{choice}']`).getBoundingClientRect().toJSON()"
            )
            assert box["height"] >= 44 and box["width"] >= 44 and box["right"] <= 390 and box["bottom"] <= 844
        browser.find_element("css selector", "[data-choice='A']").click()
        until(browser, "!busy && shown.showing !== arguments[0]", before)
    assert len(rows_of(tmp_path / "p.jsonl")) == 1


def test_dark_and_light_follow_the_system(browser, tmp_path):
    def contrast(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        found = [
            browser.execute_script(
                f"return getComputedStyle(document.getElementById('left')).{name}.match(/\\d+/g).map(Number)"
            )
            for name in ("backgroundColor", "color")
        ]
        return [sum(colour[:3]) / 3 for colour in found]

    with serving(write_candidates(tmp_path / "c.jsonl", 2), tmp_path / "p.jsonl") as served:
        open_page(browser, served.url)
        (light, on_light), (dark, on_dark) = contrast("light"), contrast("dark")
    assert light > 200 and on_light < 60 and dark < 60 and on_dark > 200
