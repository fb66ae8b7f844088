"""Preference data with a known reward: short film reviews, written by a grammar and judged by a formula.

    python -m experiments.demo --pairs 8000 --out prefs.jsonl --seed 0

Real preferences hide the reward that made them, so "better" is a matter of opinion. Here it is a fact: `reward` counts
words of praise against words of complaint. Two reviews of a film are drawn independently, and Bradley and Terry's rule
draws the preferred one from their rewards. So about one label in seven is against the reward, and one pair in ten is a
tie: the labels are noisy, as people are.
"""

import argparse
import hashlib
import json
import math
import re
from pathlib import Path

import torch

from dpo_min.data.tokenizer import Tokenizer
from dpo_min.preference import bradley_terry

TITLE_FIRST = """amber ancient blue broken burning crimson distant early electric fallen forgotten frozen golden
 hidden iron last lonely midnight paper quiet restless scarlet second silent silver sleeping stolen velvet
 wandering winter wooden""".split()
TITLE_SECOND = """answer bridge circus coast compass crown desert engine forest garden harbour horizon island journey
 kingdom lantern letter machine mirror mountain ocean orchard promise railway river season shadow station stranger
 summer theatre window""".split()
ASPECTS = """acting atmosphere camera cast dialogue direction editing ending finale humour lighting music
 opening pacing photography plot romance scenery score script soundtrack story suspense""".split()
PRAISE = """beautiful brilliant captivating charming clever delightful elegant excellent fresh funny gripping honest
 inspired lovely magical masterful memorable moving perfect rich stunning superb tender thrilling touching vivid warm
 witty wonderful""".split()
COMPLAINT = """annoying awful bland boring careless cheap clumsy cold confusing dreadful dull empty endless flat
 forgettable hollow lazy lifeless messy painful pointless predictable ridiculous shallow silly slow stale terrible
 tedious weak""".split()
PRAISE_VERBS = "admired adored enjoyed loved praised treasured".split()
COMPLAINT_VERBS = "despised disliked endured hated regretted resented".split()
ADVERBS = "always completely deeply mostly often quite rather really simply surprisingly truly utterly".split()
ASIDES = "all in all|as a whole|at first|by the end|for me|in fact|in short|more than once|this time|to be fair".split(
    "|"
)
PEOPLE = "baker captain child clerk detective doctor farmer gardener painter pilot poet sailor teacher thief".split()
RELATIVES = "aunt brother cousin daughter father friend mother neighbour sister son uncle".split()
PLACES = "café cinema club festival hall library museum school square village".split()
WHEN = "last week|on friday|on monday|on sunday|one evening|two days ago|yesterday|this spring".split("|")
LENGTHS = "eighty fifty forty ninety seventy sixty".split()

MOODS = [0.2, 0.5, 0.8]  # how often a sentence praises, within one review
REWARD_SCALE = 4.0  # rewards lie strictly between −4 and 4
HELD_OUT = 8  # every eighth title is kept out of the preference data


def reward(review):
    """r(y) = 4 (praise − complaint) / (praise + complaint + 2), counting words: bounded, whatever the length."""
    words = re.findall(r"\w+", review.lower())
    praise = sum(word in PRAISE or word in PRAISE_VERBS for word in words)
    complaint = sum(word in COMPLAINT or word in COMPLAINT_VERBS for word in words)
    return REWARD_SCALE * (praise - complaint) / (praise + complaint + 2)


def score(prompt, review):
    """The reward of an answer, for `--scorer experiments.demo:score`."""
    return reward(review)


def judge(prompt, review):
    """The score of a judge who errs: the reward, and a Gumbel number that the words of prompt and answer decide.

    The difference of two independent Gumbel numbers is logistic (Yellott, 1977). So between two answers the higher
    score falls to each with Bradley and Terry's probability of their rewards, as the labels of `make_pair` do.
    """
    seed = hashlib.sha256(json.dumps([prompt, review]).encode()).digest()[:6]
    uniform = (int.from_bytes(seed) + 0.5) / 2**48  # between 0 and 1, and neither
    return reward(review) - math.log(-math.log(uniform))


def choose(options, generator):
    """One of the options, all equally likely."""
    return options[int(torch.randint(len(options), (), generator=generator))]


def sentence(mood, generator):
    """A sentence of the grammar: one in five about the evening, else praise (with probability `mood`) or complaint."""

    def pick(options):
        return choose(options, generator)

    if pick([True, False, False, False, False]):
        return pick(
            [
                f"we saw it {pick(WHEN)} at the {pick(PLACES)} with my {pick(RELATIVES)}",
                f"it follows a {pick(PEOPLE)} and a {pick(PEOPLE)} for {pick(LENGTHS)} minutes",
            ]
        )
    words, verbs = (
        (PRAISE, PRAISE_VERBS) if torch.rand((), generator=generator) < mood else (COMPLAINT, COMPLAINT_VERBS)
    )
    text = pick(
        [
            f"the {pick(ASPECTS)} was {pick(ADVERBS)} {pick(words)}",
            f"i found the {pick(ASPECTS)} {pick(ADVERBS)} {pick(words)}",
            f"the {pick(ASPECTS)} felt {pick(words)} and the {pick(ASPECTS)} too",
            f"my {pick(RELATIVES)} {pick(verbs)} the {pick(ASPECTS)}",
        ]
    )
    return f"{pick(ASIDES)} {text}" if pick([True, False, False]) else text


def review(generator):
    """Two to five sentences, 10 to 40 words, of a critic who liked the film, or half of it, or did not like it."""
    while True:
        mood = choose(MOODS, generator)
        text = " " + ". ".join(sentence(mood, generator) for _ in range(choose([2, 3, 4, 5], generator))) + "."
        if 10 <= len(text.split()) <= 40:
            return text


def prompts(held_out):
    """A prompt for every title: those the preference data use, or those they never name."""
    titles = [f"the {first} {second}" for first in TITLE_FIRST for second in TITLE_SECOND]
    return [f"a review of {title}:" for i, title in enumerate(titles) if (i % HELD_OUT == 0) == held_out]


def make_pair(generator, unlabelled=False):
    """Two independent reviews of one film, the preferred one drawn by Bradley–Terry (a fair coin if unlabelled)."""
    prompt, a, b = choose(prompts(held_out=False), generator), review(generator), review(generator)
    while a == b:
        b = review(generator)
    rewards = torch.tensor([0.0, 0.0] if unlabelled else [reward(a), reward(b)])
    if torch.rand((), generator=generator) >= bradley_terry(rewards[0], rewards[1]):
        a, b = b, a
    return {"prompt": prompt, "chosen": a, "rejected": b}


def make_tokenizer():
    """A byte-level BPE that knows the grammar's words: a word is one token, so that a small model learns fast.

    Its merges build each word letter by letter, " t" → " th" → " the"; shorter tokens come first.
    """
    generator = torch.Generator().manual_seed(0)
    text = " ".join([review(generator) for _ in range(2000)] + prompts(held_out=True) + prompts(held_out=False))
    words = {f" {word}".encode() for word in re.findall(r"\w+", text)}
    parts = {word[:end] for word in words for end in range(2, len(word) + 1)}
    tokens = [bytes([b]) for b in range(256)] + sorted(parts, key=lambda part: (len(part), part))
    return Tokenizer({token: i for i, token in enumerate(tokens)}, end_of_text=len(tokens))


def main():
    """Write a file of preferences, and the tokenizer if it is asked for."""
    parser = argparse.ArgumentParser(description="Make preference data with a known reward.", allow_abbrev=False)
    parser.add_argument("--pairs", type=int, required=True, help="how many rows")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, .jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--unlabelled", action="store_true", help="label by a fair coin: reviews to imitate, not to prefer"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="also write a tokenizer that knows the words")
    options = parser.parse_args()
    if options.tokenizer:
        options.tokenizer.mkdir(parents=True, exist_ok=True)
        make_tokenizer().save(options.tokenizer)
    generator = torch.Generator().manual_seed(options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "w", encoding="utf-8") as file:
        for _ in range(options.pairs):
            file.write(json.dumps(make_pair(generator, options.unlabelled), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
