"""The page's server, asked by real requests: whom it serves, and that no kill loses or doubles a label."""

import json
import socket
from collections import Counter

import pytest

from dpo_min.labels.choices import row_of
from tests.labels.serving import Served, rows_of, serving, write_candidates
from tests.labels.torture_kills import kill_between_and_during

ANOTHER = "http://evil.example"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    there = tmp_path_factory.mktemp("served")
    with serving(write_candidates(there / "candidates.jsonl", 50), there / "prefs.jsonl", "--repeat", 0) as served:
        yield served


def lives(served):
    """Whether the page is still served, and an honest question answered, at once."""
    return served.request("GET", timeout=5)[0] == 200 and served.ask("next", "honest")["pair"] is not None


def test_the_page_is_one_file_and_asks_nobody_else(served):
    """Kills: a script, a font or a picture from elsewhere, and a page that another site may frame."""
    status, headers, body = served.request("GET", Origin=None)
    text, policy = body.decode(), headers["Content-Security-Policy"]
    assert status == 200 and text.count("<script") == text.count("<style") == 1
    assert not any(word in text for word in ("http:", "https:", "//cdn", "@import", "innerHTML", "src="))
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert text.count(nonce) == 2 and nonce not in served.request("GET")[2].decode()
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (403, {"Origin": ANOTHER}),
        (403, {"Origin": "null"}),
        (403, {"Origin": None}),
        (403, {"Host": "evil.example"}),
        (403, {"Host": None}),
        (403, {"Host": "127.0.0.1"}),
        (403, {"path": "/next"}),
        (403, {"path": "/" + "x" * 32 + "/next"}),
        (404, {"path": "TOKEN/../../../etc/passwd"}),
        (404, {"path": "TOKEN//etc/passwd"}),
        (404, {"path": "TOKEN/__init__"}),
        (404, {"path": "TOKEN/do"}),
        (400, {"body": b"no json"}),
        (400, {"body": b"[]"}),
        (400, {"body": b'{"window": "w", "more": 1}'}),
        (400, {"body": b'{"window": 1}'}),
        (400, {"body": b"[" * 4000}),
        (411, {"Content_Length": None}),
        (411, {"Content_Length": "-1"}),
        (411, {"Transfer_Encoding": "chunked"}),
        (413, {"Content_Length": "5000"}),
        (413, {"Content_Length": "1" * 3000}),
        (501, {"method": "DELETE"}),
    ],
)
def test_what_is_not_the_pages_own_request_is_refused_and_the_page_lives(served, status, more):
    """Kills: a page that another site can write labels with, and a file that can be read through it."""
    path = more.pop("path", "TOKEN/next").replace("TOKEN", served.parts.path.rstrip("/"))
    found, _, body = served.request(path=path, **({"body": b'{"window": "w"}'} | more))
    assert found == status and b"pair" not in body
    assert lives(served)


@pytest.mark.parametrize("path", ["/", "TOKEN", "TOKEN/page.html", "TOKEN/../", "/favicon.ico", "TOKEN/next"])
def test_nothing_but_the_page_can_be_got(served, path):
    assert served.request("GET", path.replace("TOKEN", served.parts.path.rstrip("/")))[0] in (403, 404)


def test_the_page_is_not_given_to_another_host_or_origin(served):
    """Kills: DNS rebinding, by which a site of another name gets at this machine."""
    assert served.request("GET", Host="evil.example:80")[0] == 403
    assert served.request("GET", Origin=ANOTHER)[0] == 403


def test_a_body_of_a_gigabyte_is_refused_unread_and_the_page_lives_meanwhile(served):
    with socket.create_connection((served.parts.hostname, served.parts.port), timeout=20) as connection:
        head = f"POST {served.parts.path}next HTTP/1.1\r\nHost: {served.parts.netloc}\r\nOrigin: {served.origin}\r\n"
        connection.sendall(f"{head}Content-Length: {10**9}\r\n\r\n".encode() + bytes(10**6))
        assert lives(served)
        assert connection.recv(100).startswith(b"HTTP/1.0 413")


def test_slow_and_silent_clients_do_not_stop_the_page(served):
    """Kills: a server that answers one at a time, or reads a body for as long as it takes."""
    head = f"POST {served.parts.path}next HTTP/1.1\r\nHost: {served.parts.netloc}\r\nOrigin: {served.origin}\r\n"
    slow = [socket.create_connection((served.parts.hostname, served.parts.port)) for _ in range(30)]
    for i, connection in enumerate(slow):
        connection.sendall((head + "Content-Length: 1000\r\n\r\n{").encode() if i % 2 else b"POST ")
    assert lives(served)
    for connection in slow:
        connection.close()
    assert lives(served)


def test_nothing_is_listened_to_beyond_the_loopback(served):
    with open("/proc/net/tcp", encoding="ascii") as table:
        places = [line.split()[1] for line in table if line.split()[3] == "0A"]
    port = f"{served.parts.port:04X}"
    assert [place for place in places if place.endswith(f":{port}")] == [f"0100007F:{port}"]


def test_two_windows_never_get_the_same_pair(tmp_path):
    """Kills: no lease, a lease that a reload or an undo forgets, a pair that both may label."""
    candidates = write_candidates(tmp_path / "candidates.jsonl", 30)
    with serving(candidates, tmp_path / "prefs.jsonl", "--repeat", 3) as served:
        shown = {window: served.ask("next", window)["pair"] for window in "abc"}
        seen, waiting = [], set()
        while len(waiting) < 3:
            for window in "abc":
                if shown[window]:
                    assert len({pair["showing"] for pair in shown.values() if pair}) == sum(map(bool, shown.values()))
                    seen.append(shown[window]["showing"])
                    shown[window] = served.choose(shown[window], "A", window)["pair"]
                else:
                    shown[window] = served.ask("next", window)["pair"]
                    waiting |= set() if shown[window] else {window}
        assert len(seen) == len({*seen}) == 30 + 10
    assert len(rows_of(tmp_path / "prefs.jsonl")) == 30


def test_a_late_choice_of_a_pair_that_another_window_has_decided_is_refused(tmp_path):
    with serving(write_candidates(tmp_path / "c.jsonl", 3), tmp_path / "prefs.jsonl") as served:
        pair = served.ask("next", "a")["pair"]
        served.ask("leave", "a")  # as if the lease were over
        assert served.ask("next", "b")["pair"] == pair
        late = {"window": "a", "showing": pair["showing"], "choice": "B", "before": None}
        refused = served.request(path=served.parts.path + "choose", body=json.dumps(late).encode())
        assert refused[0] == 409 and b"open in another window" in refused[2]
        served.choose(pair, "A", "b")
        refused = served.request(path=served.parts.path + "choose", body=json.dumps(late).encode())
        assert refused[0] == 409 and b"decided elsewhere" in refused[2]
        assert [row["chosen"] for row in rows_of(tmp_path / "prefs.jsonl")] == [pair["left"]]


def test_a_choice_that_is_sent_twice_counts_once(tmp_path):
    with serving(write_candidates(tmp_path / "c.jsonl", 3), tmp_path / "prefs.jsonl") as served:
        pair = served.ask("next")["pair"]
        after = served.choose(pair, "A")["pair"]
        assert served.choose(pair, "A")["pair"] == after
        assert len(rows_of(tmp_path / "prefs.jsonl")) == len(rows_of(tmp_path / "prefs.jsonl.journal")) == 1


def test_labels_are_undone_and_changed_and_the_file_follows(tmp_path):
    out = tmp_path / "prefs.jsonl"
    with serving(write_candidates(tmp_path / "c.jsonl", 4), out, "--annotator", "Ana") as served:
        first = served.ask("next")["pair"]
        second = served.choose(first, "A")["pair"]
        served.choose(second, "B")
        assert served.ask("undo")["pair"] == second
        assert [row["chosen"] for row in rows_of(out)] == [first["left"]]
        third = served.choose(second, "=")["pair"]
        served.choose(third, "S")
        seen = served.ask("look", place=0)["pair"]
        assert (seen["showing"], seen["choice"]) == (first["showing"], "A")
        served.choose(seen, "B")
        rows = {row["prompt"]: row for row in rows_of(out)}
        assert rows.keys() == {first["prompt"], second["prompt"]}
        assert rows[first["prompt"]]["chosen"] == first["right"]
        assert rows[second["prompt"]]["tie"] is True and "tie" not in rows[first["prompt"]]
        assert {row["annotator"] for row in rows.values()} == {"Ana"} and all("time" in row for row in rows.values())
        served.kill()
    with serving(tmp_path / "c.jsonl", out) as served:
        assert {row["prompt"]: row for row in rows_of(out)} == rows
        assert served.ask("next")["figures"]["done"] == 3


def test_kills_between_and_during_labels_lose_none_and_double_none(tmp_path):
    """SIGKILL at random moments; `python -m tests.labels.torture_kills` has many more of them."""
    counts = kill_between_and_during(tmp_path, kills=6, seed=0)
    assert counts["lost"] == counts["doubled"] == 0
    assert counts["between"] and counts["during"] and counts["labels"] > 6


@pytest.mark.parametrize("cut", ["journal", "prefs"])
def test_every_crash_between_the_two_files_is_put_right(tmp_path, cut):
    """Kills: a torn line that stops the next start, and a label that is in one of the files alone."""
    out, journal = tmp_path / "prefs.jsonl", tmp_path / "prefs.jsonl.journal"
    candidates = write_candidates(tmp_path / "c.jsonl", 5)
    with serving(candidates, out) as served:
        pair = served.ask("next")["pair"]
        for choice in "AB":
            pair = served.choose(pair, choice)["pair"]
        served.kill()
    events, rows, last = journal.read_bytes(), out.read_bytes(), rows_of(journal)[-1]
    for keep in (0, 1, 20, len(rows.splitlines()[1]), len(rows.splitlines()[1]) + 1):
        if cut == "journal":  # the row was not written either, which comes second
            lines = events.splitlines(keepends=True)
            journal.write_bytes(lines[0] + lines[1][:keep])
            out.write_bytes(rows.splitlines(keepends=True)[0])
        else:
            journal.write_bytes(events)
            out.write_bytes(rows.splitlines(keepends=True)[0] + rows.splitlines(keepends=True)[1][:keep])
        with serving(candidates, out) as served:
            done = served.ask("next")["figures"]["done"]
        assert len(rows_of(out)) == done == (1 if cut == "journal" else 2)
        assert done == 1 or rows_of(out)[-1] == row_of(last)


def refusal(*arguments):
    with pytest.raises(AssertionError) as stopped:
        Served(*arguments)
    return stopped.value.args[0][1]


def test_files_that_are_not_this_programs_are_left_alone(tmp_path):
    """Kills: preferences from elsewhere overwritten, edits by hand undone, two programs on one file."""
    candidates, out = write_candidates(tmp_path / "c.jsonl", 3), tmp_path / "prefs.jsonl"
    out.write_text('{"prompt": "x", "chosen": "a", "rejected": "b"}\n')
    assert "is there, and its journal" in refusal(candidates, out) and "Traceback" not in refusal(candidates, out)
    out.unlink()
    with serving(candidates, out) as served:
        served.choose(served.ask("next")["pair"], "A")
        assert "another program is writing" in refusal(candidates, out)
        served.end()
    out.write_text(out.read_text().replace("left", "LEFT").replace("right", "RIGHT"))
    assert "was changed by something else" in refusal(candidates, out)


def test_ctrl_c_ends_it_with_the_report(tmp_path):
    with serving(write_candidates(tmp_path / "c.jsonl", 2), tmp_path / "p.jsonl", "--repeat", 1) as served:
        pair = served.ask("next")["pair"]
        while pair:
            pair = served.choose(pair, "A")["pair"]
        out, err, code = served.end()
    assert code == 0 and err == "" and "2 pairs are labelled" in out
    assert "came out the same in 0 of 2" in out and "left side was taken in 4 of 4" in out


def test_ten_thousand_candidates_are_no_trouble(tmp_path):
    candidates = write_candidates(tmp_path / "c.jsonl", 10_000, lambda i: [f"a{i}", f"b{i}", f"c{i}"])
    with serving(candidates, tmp_path / "p.jsonl") as served:
        said = served.ask("next")
        assert said["figures"]["total"] == 30_000
        prompts = Counter()
        for _ in range(20):
            prompts[said["pair"]["prompt"]] += 1
            said = served.choose(said["pair"], "B")
        assert prompts == Counter(f"prompt {i}" for i in range(20))
