"""log π_ref of every pair: computed once before training, kept under a key of all that it depends on."""

import hashlib
import io
from array import array
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from dpo_min.data.batch import pack
from dpo_min.run import distributed
from dpo_min.system.devices import processor
from dpo_min.system.files import make_directory, open_regular, write_atomically
from dpo_min.system.progress import Progress

FORMAT = 1


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
        self.digests, self.logps = np.empty(0, "S16"), np.empty((0, 2))  # (N,) in order; (N, 2) chosen, rejected
        self.path = Path(directory) / f"reference-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
        try:
            with open_regular(self.path) as file:
                content = file.read()
            with np.load(io.BytesIO(content)) as file:
                if sum(entry.file_size for entry in file.zip.infolist()) > len(content):
                    raise BadZipFile("entries that expand, and no file of ours does")
                self.add(np.frombuffer(file["digests"].tobytes(), "S16"), file["logps"])
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever a broken file makes of the readers of zip and of arrays
            print(f"reference: {self.path} is damaged ({type(error).__name__}) and is made again")

    def add(self, digests, logps):
        """Take in numbers, (N, 2), under their digests, (N,), in place of what those stood for before."""
        if logps.dtype != float or logps.shape != (len(digests), 2):
            raise ValueError(f"{len(digests)} digests for log-probabilities {logps.shape}")
        digests, logps = np.concatenate([digests, self.digests]), np.concatenate([logps, self.logps])
        self.digests, first = np.unique(digests, return_index=True)
        self.logps = logps[first]

    def find(self, digests):
        """(the place of each digest, whether it is there at all), two arrays of (N,)."""
        wanted = np.array(digests, "S16")
        places = np.searchsorted(self.digests, wanted)
        places[places == len(self.digests)] = 0
        return places, self.digests[places] == wanted if len(self.digests) else np.zeros(len(wanted), bool)

    @torch.no_grad()
    def fill(self, score, groups, device, autocast, total=0, reduce="sum"):
        """Score every group of pairs of which one is missing, a forward each, and write the file.

        Args: score, the reference's `Logps`; groups, lists of pairs, read one at a time; total, the number of pairs in
            them, for the progress; reduce, a weight of tokens as `batch_logps` takes it, or a word: a mean is made of
            the sums where it is looked up.

        With several processes each brings groups of its own, and all end with the numbers of all.
        """
        weight = reduce if isinstance(reduce, float) else "sum"
        digests, logps, done = bytearray(), array("d"), 0  # of what is new: 64 bytes a pair
        with Progress("reference", total, "pairs") as progress:
            for group in groups:
                alone, together = group_digests(group)
                if distributed.any_of(not self.find(together)[1].all()):  # all or none: FSDP's forward is of all
                    with autocast:
                        found = score(pack(group).to(device), weight).double().view(2, -1).T  # (B, 2)
                    digests += b"".join(alone + together)
                    logps.extend(found.repeat(2, 1).flatten().tolist())
                done += len(group)
                progress.at(done)
        new = [part for part in distributed.everyone((bytes(digests), logps)) if part[0]]
        for keys, values in new:
            self.add(np.frombuffer(keys, "S16"), np.frombuffer(values).reshape(-1, 2))
        if new and distributed.rank() == 0:
            try:
                make_directory(self.path.parent)
                with write_atomically(self.path) as file:
                    np.savez(file, digests=self.digests.view(np.uint8).reshape(-1, 16), logps=self.logps)
            except OSError as error:
                print(f"note: cannot write to {self.path.parent} ({error.strerror}): another run scores again")

    def look_up(self, pairs, like, reduce="sum"):
        """(chosen, rejected) log-probabilities, each (B,), of the type and on the device of `like`.

        Raises:
            KeyError: a pair was never scored.
        """
        (alone, known), (together, here) = map(self.find, group_digests(pairs))
        if not (known | here).all():
            raise KeyError(f"the reference never scored {pairs[int((known | here).argmin())].source or 'a pair'}")
        sums = torch.from_numpy(self.logps[np.where(here, together, alone)]).to(like.dtype)  # (B, 2)
        if reduce == "mean":
            sums /= torch.tensor([(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs])
        return sums.to(like.device).unbind(dim=1)


def settings_of(flags, fingerprint, device, reduce):
    """What makes a stored reference stale where it is another, besides the pairs; `fingerprint`: its weights' hash."""
    names = ("batch_size", "micro_batch_size", "seed", "compile", "dtype")
    settings = {name: getattr(flags, name) for name in names} | {"device": device}
    settings |= {"weights": fingerprint, "threads": torch.get_num_threads()}
    settings["processor"] = processor(device)  # its instructions decide last bits
    return settings | ({"reduce": reduce} if isinstance(reduce, float) else {})


@torch.no_grad()
def follow(reference, policy, alpha):
    """π_ref ← α π + (1 − α) π_ref in the weights: a reference that follows the policy (TR-DPO, arXiv:2404.09656)."""
    for ours, theirs in zip(reference.parameters(), policy.parameters(), strict=True):
        ours.lerp_(distributed.whole(theirs), alpha)
