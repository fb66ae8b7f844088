"""What a long run needs and a first reading skips: flags, directory, log, checkpoint, resume, several devices."""

READING_ORDER = (
    "calendar",
    "directory",
    "loss_flags",
    "train_flags",
    "lengths",
    "resume",
    "job",
    "sample_flags",
    "start",
    "distributed",
    "finite",
    "log",
    "interrupt",
    "optimizer",
    "contents",
    "checkpoint",
    "session",
    "criterion",
    "stored_reference",
    "watch",
)
