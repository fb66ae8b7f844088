"""log π_ref of every pair: computed once before training, kept under a key of all that it depends on."""

import hashlib
import io
import sys
import time
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from dpo_min import distributed
from dpo_min.packing import batch_logps, pack
from dpo_min.weights import write_atomically

FORMAT = 1


def model_fingerprint(model):
    """SHA-256 of the weights: names, shapes, types and bytes; the same for equal models on any device."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def pair_digest(pair):
    """16 bytes that stand for the token ids of a pair, wherever in the data it is."""
    ids = [len(pair.prompt_ids), len(pair.chosen_ids), *pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids]
    return hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16).digest()


def group_digests(group):
    """For each pair of a batch, its digest alone, and one that stands for it beside just these others."""
    alone = [pair_digest(pair) for pair in group]
    together = b"".join(alone)
    return alone, [hashlib.blake2b(digest + together, digest_size=16).digest() for digest in alone]


class ReferenceLogps:
    """pair → log π_ref of its two completions, in nats, read from a file and added to it.

    Looked up by token ids, so neither the order of the data nor its other rows matter. What else the numbers
    depend on is in `settings`, name → value, from which the file takes its name: the weights' fingerprint, the
    dtype, the device. A batch's other rows move the last bits, and at step 0 policy and reference must be the
    same to the last: each number is also kept under the batch that it was computed in, and taken from there if the
    same batch comes again.
    """

    def __init__(self, directory, settings):
        text = repr((FORMAT, torch.__version__, sorted(settings.items())))
        self.path = Path(directory) / f"reference-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
        self.logps = {}  # digest → (chosen, rejected)
        try:
            with np.load(io.BytesIO(self.path.read_bytes())) as file:
                digests, logps = file["digests"], file["logps"]
            self.logps = {digest.tobytes(): tuple(row) for digest, row in zip(digests, logps.tolist(), strict=True)}
        except FileNotFoundError:
            pass
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RuntimeError,
            EOFError,
            BadZipFile,
        ) as error:
            print(f"reference: {self.path} is damaged ({type(error).__name__}) and is made again")

    @torch.no_grad()
    def fill(self, model, groups, device, autocast):
        """Score every group of pairs of which one is missing, a forward each, and write the file.

        With several processes each brings groups of its own, and all end with the numbers of all.
        """
        groups = [group for group in groups if not all(digest in self.logps for digest in group_digests(group)[1])]
        live, start, shown = sys.stdout.isatty(), time.perf_counter(), 0.0
        for done, group in enumerate(groups, 1):
            with autocast:
                logps = batch_logps(model, pack(group).to(device)).cpu().double().view(2, -1).T  # (B, 2)
            for digests in group_digests(group):
                self.logps |= zip(digests, map(tuple, logps.tolist()), strict=True)
            spent = time.perf_counter() - start
            if spent - shown > (0.2 if live else 30) or (live and done == len(groups)):
                shown, left = spent, int(spent / done * (len(groups) - done))
                line = f"reference {done}/{len(groups)} batches  {left // 60}:{left % 60:02d} left"
                print(f"\r\x1b[K{line}" if live else line, end="" if live and left else "\n", flush=True)
        self.logps = distributed.union(self.logps)
        if distributed.any_of(bool(groups)) and distributed.rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            digests = np.frombuffer(b"".join(self.logps), dtype=np.uint8).reshape(-1, 16)
            with write_atomically(self.path) as file:
                np.savez(file, digests=digests, logps=np.array(list(self.logps.values())))

    def look_up(self, pairs, like, reduce="sum"):
        """(chosen, rejected) log-probabilities, each (B,), of the type and on the device of `like`.

        Raises:
            KeyError: a pair was never scored.
        """
        rows = [
            self.logps.get(together) or self.logps[alone] for alone, together in zip(*group_digests(pairs), strict=True)
        ]
        sums = torch.tensor(rows, dtype=torch.float64).to(like.dtype)
        if reduce == "mean":
            sums /= torch.tensor([(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs])
        return sums.to(like.device).unbind(dim=1)


@torch.no_grad()
def follow(reference, policy, alpha):
    """π_ref ← α π + (1 − α) π_ref in the weights: a reference that follows the policy (TR-DPO, arXiv:2404.09656)."""
    for ours, theirs in zip(reference.parameters(), policy.parameters(), strict=True):
        ours.lerp_(distributed.whole(theirs), alpha)
