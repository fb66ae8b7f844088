"""The run directory while a run lasts: opened and locked, its settings compared, its models saved."""

import math
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from dpo_min.data.hashed_files import NOTHING
from dpo_min.model.adapter import adapter_fingerprint
from dpo_min.model.lora import adapters_off
from dpo_min.model.weights import model_fingerprint, save_model
from dpo_min.run import checkpoint, directory, distributed, resume
from dpo_min.run.calendar import count_steps
from dpo_min.system.devices import choose_device, processor
from dpo_min.system.files import make_directory
from dpo_min.system.program import mistakes
from dpo_min.system.text import one_line


def identity_of(job, policy, reference):
    """Everything that determines a run, name → value, as its config.json keeps it; the models as they begin."""
    flags = job.flags
    device, dtype = choose_device(flags.device, flags.dtype)
    read = {"data": job.pairs, "eval_data": job.held_out, "sft_data": job.sft_pairs}
    now = {f"{name}_sha256": pairs.sha256 if getattr(flags, name) else NOTHING for name, pairs in read.items()}
    now["tokenizer_sha256"] = job.tokenizer.fingerprint()
    now["adapter_sha256"] = flags.adapter and adapter_fingerprint(flags.adapter)
    now["init_sha256"] = own = flags.init and base_fingerprint(policy)
    if not flags.adapter and (flags.init or flags.loss_type == "sft"):  # one that is made here has no hash yet
        now["reference_sha256"] = own if reference is policy else reference and model_fingerprint(reference)
    where = {"device": device, "dtype": str(dtype).removeprefix("torch."), "versions": resume.versions()}
    where |= {"processes": distributed.processes(), "threads": torch.get_num_threads()}
    where |= {"processor": processor(device)}
    return resume.kept_flags(flags) | where | {"steps": count_steps(flags, job.pairs)[0]} | now


@contextmanager
def opened(flags, identity):
    """The run directory, locked while the context lasts, with its config.json; for a resumed run it is compared first.

    Of several processes the first does it; the others wait. The program ends with one line where the directory cannot
    be made, another run is writing in it, or its run began with other settings.
    """
    with ExitStack() as held:
        with mistakes():
            if distributed.rank() == 0:
                held.enter_context(directory.hold(flags.out))
                enter(flags, identity)
        distributed.barrier()
        yield


def base_fingerprint(model):
    """The `model_fingerprint` of a model with its adapters off."""
    with adapters_off(model):
        return model_fingerprint(model)


def enter(flags, identity):
    """`opened` in the first process, which holds the lock.

    Raises:
        ValueError: the run began with other settings.
    """
    directory.check_out(flags.out, flags.resume, held=True)  # another may have come and gone since it was checked
    if flags.resume:
        before = resume.read_run(flags.out)
        taken = max(map(checkpoint.number, checkpoint.found(flags.out / "checkpoint")), default=0)
        if taken > identity["steps"]:
            raise ValueError(f"--resume: the run has taken {taken} steps, more than {identity['steps']}")
        for note in resume.compare(before, identity):
            print(f"resume: {one_line(note)}")
        identity = before | identity
    else:
        for name in directory.RUN_FILES[:2]:  # of a run that stopped before it saved anything
            (flags.out / name).unlink(missing_ok=True)
    directory.sweep(flags.out)
    resume.write_run(flags.out, identity)


def note_reference(directory, reference):
    """The hash of the reference that was made here, which is kept, or compared with the one that was.

    Raises:
        ValueError: the reference is not the one that the run was begun with.
    """
    fingerprint = base_fingerprint(reference)
    if distributed.rank() == 0:
        before = resume.read_run(directory)
        if before.get("reference_sha256"):
            resume.compare(before, {"reference_sha256": fingerprint})
        else:
            resume.write_run(directory, before | {"reference_sha256": fingerprint})
    distributed.barrier()
    return fingerprint


def save_model_directory(model, tokenizer, directory, sealed=False):
    """A model with its tokenizer's files: what `train.py --init` and `sample.py --model` take.

    Every process must take part; the first writes, and none goes on before it has. `sealed`: with a manifest.json,
    by which a change shows: of the best model there is no other copy.
    """
    model = distributed.gather(model)
    if model:
        make_directory(directory)
        tokenizer.save(directory)
        save_model(model, directory, tokenizer.end_of_text)  # config.json comes last: with it the directory is whole
        if sealed:
            checkpoint.seal(Path(directory))
    distributed.barrier()


def kept_best(run, best):
    """The best held-out loss of a run that goes on; infinite, with a line, where best/ is not as it was written.

    The next evaluation then writes it anew. A fit that keeps no best/ is not in a run's own directory.
    """
    trouble = None
    if distributed.rank() == 0 and math.isfinite(best) and directory.is_run(run):
        alone = (run / "best" / "adapter_config.json").exists()  # as --export adapter leaves it
        trouble = checkpoint.damage(run / "best", [f"{'adapter_' if alone else ''}model.safetensors"])
    if trouble := distributed.everyone(trouble)[0]:
        print(f"resume: best/ is {trouble}: the model of the next evaluation takes its place")
    return math.inf if trouble else best


def draw_curves(directory):
    """curves.png, where matplotlib works; a run needs no picture to be complete."""
    if distributed.rank():
        return
    try:
        from dpo_min.judge import pictures

        pictures.draw_curves(directory)
    except OSError as error:
        print(f"no curves.png ({error}): with matplotlib, python -m dpo_min.judge.pictures {directory} draws it")
