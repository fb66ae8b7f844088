"""The settings that a model was trained with, as far as scoring depends on them: read from the run that it lies in."""

from dpo_min.system.files import read_json
from dpo_min.system.flags import POSITIVE


def run_settings(model):
    """What a run's config.json, in the directory above a model's, says on scoring; what train.py takes without it.

    Returns: beta, reduce, and max_length and max_prompt_length, which are None where there is no run.

    Raises:
        ValueError: the config is a run's and cannot be read, or has no beta above 0.
    """
    path, settings = model.resolve().parent / "config.json", {}
    if path.exists() and "data_sha256" in (found := read_json(path)):
        settings = found
    beta = settings.get("beta", 0.1)
    if type(beta) not in (int, float) or not POSITIVE.test(beta):
        raise ValueError(f"{path}: beta is {beta!r}, not {POSITIVE.words}; give --beta")
    names = ("max_length", "max_prompt_length")
    return {"beta": beta, "reduce": settings.get("reduce", "sum")} | {name: settings.get(name) for name in names}
