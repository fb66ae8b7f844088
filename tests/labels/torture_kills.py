"""Kill the labels' server between and during labels, and count what is lost or doubled.

python -m tests.labels.torture_kills 200
"""

import http.client
import json
import random
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from tests.labels.serving import Served, rows_of, write_candidates

CHOICES = "AB=AB"


def kill_between_and_during(place, kills, seed):
    """Counts: kills "between" and "during" labels, labels, "lost" and "doubled" ones, choices at a kill.

    After every kill the server is started again and asked for the next pair. A label is lost if it was answered and is
    not in prefs.jsonl, or is there otherwise; doubled if its pair has two rows.
    """
    chance, counts, said = random.Random(seed), Counter(), {}  # said: prompt → the row that has to be there
    candidates, out = write_candidates(place / "candidates.jsonl", 40 * kills), place / "prefs.jsonl"
    unheard = None  # the choice that was being sent at a kill: it may be there or not, but once
    for _ in range(kills):
        served = Served(candidates, out, "--repeat", 7)
        pair = served.ask("next")["pair"]
        check(rows_of(out), said, unheard, counts)
        unheard = None
        for _ in range(chance.randrange(1, 6)):
            choice = chance.choice(CHOICES)
            row = expected(pair, choice)
            pair = served.choose(pair, choice)["pair"]
            said |= row
            counts["labels"] += bool(row)
        if chance.random() < 0.5:
            counts["between"] += 1
            served.kill()
        else:
            counts["during"] += 1
            choice = chance.choice(CHOICES)
            unheard, heard = expected(pair, choice), []
            body = {"window": "w", "showing": pair["showing"], "choice": choice, "before": pair["choice"]}
            request = threading.Thread(target=send, args=(served, json.dumps(body).encode(), heard))
            killer = threading.Timer(chance.random() * 0.004, served.process.kill)
            killer.start()
            request.start()
            request.join()
            killer.join()
            served.kill()
            if heard:  # then it has to be there
                said, unheard = said | unheard, None
            counts["answered while killed"] += bool(heard)
    served = Served(candidates, out, "--repeat", 7)
    check(rows_of(out), said, unheard, counts)
    counts["rows"] = len(rows_of(out))
    served.kill()
    return counts


def expected(pair, choice):
    """{prompt: the row that a choice makes}; nothing for a pair that was shown a second time."""
    if pair["showing"].endswith(":1"):
        return {}
    sides = pair["left"], pair["right"]
    chosen, rejected = sides[::-1] if choice == "B" else sides
    row = {"prompt": pair["prompt"], "chosen": chosen, "rejected": rejected}
    return {pair["prompt"]: row | ({"tie": True} if choice == "=" else {})}


def send(served, body, heard):
    """Send a choice, and note whether it was answered."""
    connection = http.client.HTTPConnection(served.parts.hostname, served.parts.port, timeout=10)
    try:
        connection.request("POST", served.parts.path + "choose", body, {"Origin": served.origin})
        if connection.getresponse().status == 200:
            heard.append(True)
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()


def check(rows, said, unheard, counts):
    """Compare the file with what has to be in it; the choice that may be there joins `said` if it is."""
    found = {row["prompt"]: row for row in rows}
    for prompt, row in (unheard or {}).items():
        if prompt in found:
            said[prompt] = row
            counts["written though unheard"] += 1
    counts["lost"] += sum(found.get(prompt) != row for prompt, row in said.items())
    counts["doubled"] += len(rows) - len(found) + len(found.keys() - said.keys())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name, number in sorted(kill_between_and_during(Path(folder), int(sys.argv[1]), 0).items()):
            print(f"{name}: {number}")
