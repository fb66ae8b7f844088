"""What makes a directory a model's, and what it is mistaken for. No PyTorch."""

from pathlib import Path

from dpo_min.system.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_config(directory):
    """The object in the directory's config.json.

    Raises:
        ValueError: it is not a model's directory, or has no weights that are read here; the message says what it is.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if directory.is_file():
        raise ValueError(f"{directory}: {'a GGUF file' if is_gguf(directory) else 'a file'}, not a model directory")
    if not path.exists():
        if (directory / "model" / "config.json").is_file():
            raise run_given(directory)
        if (directory / "adapter_config.json").is_file():
            raise ValueError(
                f"{directory}: an adapter; give the model that it was trained on as --init, and this as --adapter"
            )
        if any(directory.glob("*.gguf")):
            raise ValueError(f"{directory}: holds a GGUF file, not a model directory; convert it to safetensors first")
    content = read_json(path)
    if "data_sha256" in content and "model_type" not in content:
        raise run_given(directory)
    return content


def run_given(directory):
    """What is said where train.py's --out is given as a model."""
    return ValueError(f"{directory}: the directory of a run, not of a model: the model is in {directory / 'model'}")


def is_gguf(path):
    """Whether a file begins as GGUF files do."""
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def weight_files(directory):
    """File of weights → the names that the index lists for it, or None where one file holds all.

    Raises:
        ValueError: there is none, or the index is no index of files in this directory.
    """
    directory = Path(directory)
    if (directory / WEIGHTS).exists():
        return {directory / WEIGHTS: None}
    if not (directory / INDEX).exists():
        pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
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
