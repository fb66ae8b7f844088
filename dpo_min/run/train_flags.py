"""Every flag of train.py: its default, when to change it, and beside which others it would have no effect."""

from dataclasses import MISSING, dataclass, make_dataclass, replace
from pathlib import Path

from dpo_min.data.lines import check_kinds
from dpo_min.data.row_flags import RowFlags
from dpo_min.run.directory import check_out
from dpo_min.run.loss_flags import LOSS, OTHERS, PARAMETERS, ROWS, SMOOTHED, loss_weights, parameter_flags
from dpo_min.system import kinds
from dpo_min.system.flags import flag, parse, refuse, sections
from dpo_min.system.launcher import processes

LEARNING_RATE = 2e-5  # of a model of some hundred million weights: docs/lora.md tries others
SFT_LEARNING_RATE = 2e-3  # of a small GPT from scratch
LORA_RATE = 10  # times the learning rate of all weights (Schulman et al., 2025, "LoRA Without Regret")


@dataclass
class TrainFlags(RowFlags):
    """Every flag: its default, and when to change it."""

    data: list[str] = flag(MISSING, "preferences, .jsonl or .jsonl.gz")
    eval_data: list[str] = flag([], "held-out preferences; instead of splitting some off --data")
    eval_fraction: float | None = flag(None, "share held out; default: 0.05, at most 1000 pairs", kinds.FRACTION)
    sft_data: list[str] = flag([], "fit the first model to the chosen side of these rows; default: of --data")
    skip_bad_rows: bool = flag(False, "leave malformed rows out instead of stopping at them")
    ties: str = flag("drop", "rows with tie true: leave them out, or train both ways at half weight", ["drop", "half"])
    max_length: int | None = flag(None, "of prompt + completion; default: 512, or all positions if fewer", kinds.LENGTH)
    max_prompt_length: int | None = flag(None, "tokens a cut prompt keeps; default: half --max-length", kinds.COUNT)
    init: Path | None = flag(None, "model directory to start from; without it a small GPT is fitted first")
    adapter: Path | None = flag(None, "adapter directory that belongs to --init: the run begins with both, merged")
    reference: Path | None = flag(None, "model directory of the reference, if it is not --init")
    reference_refresh: int | None = flag(None, "move the reference towards the policy after every N steps", kinds.COUNT)
    reference_alpha: float = flag(0.6, "how far, as a share of the way; 1 makes it the policy", kinds.PROBABILITY)
    tokenizer: str | None = flag(None, "bytes, gpt2 or a directory; default: --init's own, bytes without --init")
    out: Path | None = flag(None, "run directory; default: runs/ and the name of the data")
    n_layer: int = flag(4, "blocks of the GPT that is fitted from scratch", kinds.SIZE)
    n_head: int = flag(4, "its attention heads", kinds.SIZE)
    n_embd: int = flag(128, "its width", kinds.SIZE)
    block_size: int | None = flag(None, "its longest sequence; default: --max-length", kinds.LENGTH)
    loss_type: str = flag(
        "sigmoid", f"{LOSS.words}; docs/losses.md says which to use for which trouble, and where each one ends", LOSS
    )
    beta: float = flag(0.1, "lower: follow the preferences further from the reference; higher: stay", kinds.POSITIVE)
    label_smoothing: float | None = flag(None, "rate of wrong labels to allow for; default: 0.1", kinds.NOISE_RATE)
    wpo: bool = flag(False, "weigh each pair by how like the policy's own writing it is, as WPO does")
    reduce: str = flag("sum", "mean: score by log-probability per token, whatever the length", ["sum", "mean"])
    epochs: float = flag(1.0, "passes over the data", kinds.POSITIVE)
    max_steps: int | None = flag(None, "optimiser steps, instead of --epochs", kinds.COUNT)
    sft_steps: int | None = flag(None, "length of the first fit; default: as long as what follows", kinds.COUNT)
    batch_size: int = flag(32, "pairs per optimiser step; larger for noisier labels", kinds.COUNT)
    learning_rate: float | None = flag(
        None,
        "default: 1e-4, for sft 2e-3; with --init 2e-5; with --lora ten times; try a tenth for billions of weights",
        kinds.RATE,
    )
    warmup_steps: int = flag(0, "steps in which the learning rate rises to its value; the paper has 150", kinds.NATURAL)
    lr_schedule: str = flag("constant", "after the warm-up", ["constant", "linear", "cosine"])
    optimizer: str = flag("adamw", "rmsprop is the paper's, and holds half the state", ["adamw", "rmsprop"])
    weight_decay: float = flag(0.0, "pull of the matrices towards zero", kinds.DECAY)
    max_grad_norm: float = flag(1.0, "gradients longer than this are shortened to it", kinds.POSITIVE)
    micro_batch_size: int = flag(8, "pairs per forward; smaller when memory runs out, same result", kinds.COUNT)
    dtype: str = flag("auto", "auto: bfloat16 on CUDA, float32 elsewhere", ["auto", "float32", "bfloat16", "float16"])
    device: str = flag("auto", "where to compute", ["auto", "cpu", "cuda", "mps"])
    checkpoint_activations: bool = flag(False, "compute each block twice to hold only its input: less memory, slower")
    compile: bool = flag(False, "torch.compile both models: a slow start, then faster steps")
    shard: bool = flag(False, "under torchrun, FSDP instead of DDP: when one device cannot hold the training state")
    lora: int | None = flag(None, "train an adapter of this rank and no weight; a first fit trains all", kinds.RANK)
    lora_alpha: float | None = flag(None, "its strength, α of α/r; default: twice the rank", kinds.POSITIVE)
    lora_targets: list[str] | None = flag(
        None, "linear layers that get one, such as c_attn q_proj; default: all of the blocks", None, "NAME"
    )
    export: str | None = flag(None, "write only model/, or only adapter/; default: both", ["merged", "adapter"])
    seed: int = flag(0, "initial weights, split and order of the data", kinds.SEED)
    resume: bool = flag(False, "continue the run in --out from its checkpoint")
    log_every: int = flag(10, "steps between train lines of metrics.jsonl", kinds.COUNT)
    max_kl: float | None = flag(None, "warn above so many nats of KL(policy‖reference) an answer", kinds.ABOVE_ZERO)
    eval_every: int = flag(100, "steps between evaluations", kinds.COUNT)
    save_every: int = flag(200, "steps between checkpoints", kinds.COUNT)

    @property
    def cache(self):
        """Where the data's pairs are kept, beside the run: the next run on the same data finds them there."""
        return self.out.parent / "cache"

    @property
    def outcome(self):
        """The directory of what the run is for: the model, or the adapter where that alone is exported."""
        return self.out / ("adapter" if self.export == "adapter" else "model")

    @property
    def losses(self):
        """Name → weight of the losses that are added up."""
        return loss_weights(self.loss_type)

    @property
    def has_reference(self):
        """Whether the loss compares the policy with a reference."""
        return any(name in OTHERS or ROWS[name].reference for name in self.losses if name != "sft")

    @property
    def stores_reference(self):
        """Whether log π_ref of every pair is computed before the first step, and no reference is asked afterwards."""
        return self.has_reference and not self.reference_refresh and self.rows == "pairs"

    @property
    def rows(self):
        """What a row of the data is: "pairs", or what dpo_min/data/judgements.py reads."""
        return OTHERS.get(self.loss_type, "pairs")

    @property
    def loss_options(self):
        """Name → value of those parameters of the loss that were given."""
        names = {name: f"loss_{name}" for name in PARAMETERS if name != "tail"} | {"label_smoothing": "label_smoothing"}
        return {name: value for name, field in names.items() if (value := getattr(self, field)) is not None}


TrainFlags = make_dataclass("TrainFlags", parameter_flags(), bases=(TrainFlags,))

GROUPS = sections(
    TrainFlags,
    "data init out loss_type beta",
    ("data", "template"),
    ("model", "init"),
    ("objective", "loss_type"),
    ("optimiser", "epochs"),
    ("memory and speed", "micro_batch_size"),
    ("LoRA", "lora"),
    ("the run", "seed"),
    ("objective", f"loss_{next(iter(PARAMETERS))}"),
)
ABOUT = "Train a language model on preferences, by DPO."
EXAMPLE = "python train.py --data prefs.jsonl --init gpt2/ --out runs/first"


def imitates(c):
    """A test of flags: whether the run is a supervised fit alone."""
    return c.loss_type == "sft"


def belongs(name, losses):
    """The row of a flag that has an effect with these losses alone."""
    return lambda c: c.losses.keys().isdisjoint(losses), name, f"except with --loss-type {', '.join(losses)}"


# (when, the flags that then have no effect, why): giving one of them is an error.
WITHOUT_EFFECT = (
    (imitates, "beta label_smoothing reduce reference reference_refresh max_kl wpo", "with --loss-type sft"),
    (lambda c: c.rows != "pairs", "wpo chosen_column rejected_column ties", "with a --loss-type that sees no pairs"),
    (lambda c: not c.has_reference, "reference reference_refresh max_kl", "with a --loss-type that has no reference"),
    (
        lambda c: any(ROWS[name].reduce for name in c.losses if name in ROWS),
        "reduce",
        "with a --loss-type that says itself how tokens are added up",
    ),
    *(belongs(f"loss_{name}", losses) for name, losses in PARAMETERS.items()),
    (lambda c: c.template == "none", "system", "with --template none, which has no turns"),
    (lambda c: not c.reference_refresh, "reference_alpha", "without --reference-refresh"),
    (imitates, "sft_steps sft_data", "with --loss-type sft, which is that fit itself"),
    belongs("label_smoothing", SMOOTHED),
    (lambda c: c.init, "n_layer n_head n_embd block_size sft_steps sft_data", "with --init, which is a fitted model"),
    (lambda c: not c.init, "reference", "without --init: the reference is the model that is fitted first"),
    (lambda c: not c.init, "adapter", "without --init, the model that it belongs to"),
    (lambda c: c.adapter, "reference", "with --adapter: the reference is --init with that adapter, merged"),
    (lambda c: not c.lora, "lora_alpha lora_targets export", "without --lora"),
    (lambda c: c.lora, "reference_refresh", "with --lora: the reference is the model without its adapter"),
    (
        lambda c: imitates(c) and not c.init,
        "lora",
        "with --loss-type sft and without --init: an adapter needs weights that were fitted before",
    ),
    (lambda c: c.max_steps, "epochs", "with --max-steps"),
    (lambda c: c.eval_data, "eval_fraction", "with --eval-data"),
    (lambda c: not c.eval_data and c.eval_fraction == 0, "eval_every max_kl", "without held-out rows"),
    (lambda c: c.shard, "max_kl", "with --shard: answers are sampled from whole weights"),
    (lambda c: processes() == 1, "shard", "in one process: torchrun starts more"),
)


def read_flags(argv):
    """(flags, names of those given) of a command line; ValueError for a flag that is wrong or without effect."""
    flags, given = parse(TrainFlags, argv, ABOUT, GROUPS, EXAMPLE)
    for applies, names, reason in WITHOUT_EFFECT:
        if applies(flags):
            refuse(given, names.split(), reason)
    if flags.n_embd % flags.n_head:
        raise ValueError(f"--n-embd {flags.n_embd} must be a multiple of --n-head {flags.n_head}")
    if flags.learning_rate is None:
        scratch = SFT_LEARNING_RATE if flags.loss_type == "sft" else 1e-4
        flags.learning_rate = (LEARNING_RATE if flags.init else scratch) * (LORA_RATE if flags.lora else 1)
    if flags.lora:
        flags.lora_alpha = flags.lora_alpha or 2.0 * flags.lora
    if flags.lora_targets:
        flags.lora_targets = sorted({name for names in flags.lora_targets for name in names.split(",")})
    _ = flags.columns  # which checks them
    check_kinds([*flags.data, *flags.eval_data, *flags.sft_data])
    flags.out = flags.out or Path("runs") / (Path(flags.data[0]).name.lstrip(".").split(".")[0] or "run")
    if flags.out.name.lower() == flags.cache.name:
        raise ValueError(f"--out {flags.out}: the cache/ of the runs beside it, which may be deleted; name another")
    flags.resume = check_out(flags.out, flags.resume)
    return flags, given


def first_fit_flags(flags):
    """The flags of the supervised fit that comes before DPO; those of DPO itself have no effect on it."""
    return replace(
        flags,
        loss_type="sft",
        max_steps=flags.sft_steps,
        learning_rate=SFT_LEARNING_RATE,
        lr_schedule="cosine",
        warmup_steps=flags.sft_steps // 10,
        optimizer="adamw",
        weight_decay=0.0,
        reference_refresh=None,
    )
