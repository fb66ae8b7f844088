"""What makes a directory a model's, and what it is mistaken for. No PyTorch."""

from pathlib import Path

from dpo_min.system.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(directory):
    """The object in a model directory's config.json; ValueError says what the directory is, where it is no model's."""
    path = Path(directory) / "config.json"
    if what := mistaken_for(Path(directory)):
        raise ValueError(f"{directory}: not a model: {what}")
    return read_json(path)


def mistaken_for(directory):
    """What a path that was given as a model's is instead, where that is known; else None."""
    if directory.is_file():
        return f"a {directory.suffix or 'plain'} file, not a directory with safetensors in it"
    path = directory / "config.json"
    content = read_json(path) if path.exists() else {}
    if "model_type" not in content and ("data_sha256" in content or (directory / "model" / "config.json").is_file()):
        return f"the directory of a run: the model is in {directory / 'model'}"
    if path.exists():
        return None
    if (directory / "adapter_config.json").is_file():
        return "an adapter; give the model that it was trained on as --init, and this as --adapter"
    return "a GGUF file is in it; convert it to safetensors first" if any(directory.glob("*.gguf")) else None


def weight_files(directory):
    """File of weights → the names that the index lists for it, or None where one file holds all.

    Raises:
        ValueError: there is none, or the index is no index of files in this directory.
    """
    directory = Path(directory)
    if (directory / WEIGHTS).exists():
        return {directory / WEIGHTS: None}
    if not (directory / INDEX).exists():
        pickles = [path.name for path in sorted(directory.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        also = f" but {pickles[0]}, a pickle, which may run code: save the model as safetensors" if pickles else ""
        raise ValueError(f"{directory}: holds no {WEIGHTS}{also}")
    places = read_json(directory / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{directory / INDEX}: weight_map must map tensor names to files")
    files = {}
    for tensor, name in places.items():
        if Path(name).name != name:
            raise ValueError(f"{directory / INDEX}: {name!r} is not a file in the same directory")
        files.setdefault(directory / name, set()).add(tensor)
    return dict(sorted(files.items()))
