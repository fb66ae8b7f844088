"""What a model directory's config.json says of its sizes, read without PyTorch."""

from dpo_min.system.files import read_json


def model_sizes(directory):
    """(token ids, positions) by a model directory's config.json; `load_model` checks the rest of it."""
    path = directory / "config.json"
    config = read_json(path)
    for key in ("vocab_size", "n_positions"):
        if type(config.get(key)) is not int:
            raise ValueError(f"{path}: {key} is {config.get(key)!r}, not a whole number")
    return config["vocab_size"], config["n_positions"]
