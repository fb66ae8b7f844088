"""The safetensors container, written by hand beside ours: what is damaged, or only looks large, is refused by name."""

import json
import os

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.model.safetensors import MAX_HEADER, hollow, read_safetensors, write_safetensors
from dpo_min.system.files import write_atomically

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def parts(tensors):
    """(header, data) of a safetensors file."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    return header, data


def container(header, data):
    """The bytes of a safetensors file; a header of bytes is taken as it is."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


HEADER, DATA = parts({"first": torch.arange(6.0).reshape(2, 3), "second": torch.tensor([1, 2])})  # 24 + 16 bytes


def second(**changes):
    """HEADER with another entry for "second"."""
    return HEADER | {"second": HEADER["second"] | changes}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("container") / "damaged.safetensors"


def test_the_container_that_is_damaged_below_is_whole(file):
    file.write_bytes(container(HEADER | {"__metadata__": {"format": "pt"}}, DATA))
    tensors = read_safetensors(file)
    assert torch.equal(tensors["first"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(tensors["second"], torch.tensor([1, 2]))
    assert len(tensors) == 2


@pytest.mark.parametrize(
    ("header", "data"),
    [
        pytest.param(second(data_offsets=[20, 36]), DATA[:36], id="overlap"),
        pytest.param(second(data_offsets=[0, 16]), DATA[:24], id="the same place twice"),
        pytest.param(second(data_offsets=[32, 48]), DATA + bytes(8), id="gap"),
        pytest.param(second(data_offsets=[1000, 1016]), DATA, id="starts out of range"),
        pytest.param(second(data_offsets=[24, 48], shape=[3]), DATA, id="ends out of range"),
        pytest.param(second(data_offsets=[2**62, 2**62 + 16]), DATA, id="far out of range"),
        pytest.param(second(shape=[3]), DATA, id="too few bytes for the shape"),
        pytest.param(second(shape=[1]), DATA, id="too many bytes for the shape"),
        pytest.param(second(shape=[]), DATA, id="too many bytes for a scalar"),
        pytest.param(second(dtype="F32"), DATA, id="too many bytes for the dtype"),
        pytest.param(second(dtype="F7"), DATA, id="unknown dtype"),
        pytest.param(second(dtype=7), DATA, id="dtype a number"),
        pytest.param(second(dtype=None), DATA, id="dtype null"),
        pytest.param(second(dtype=["I64"]), DATA, id="dtype a list"),
        pytest.param(second(shape=None), DATA, id="shape null"),
        pytest.param(second(shape=2), DATA, id="shape a number"),
        pytest.param(second(shape=["2"]), DATA, id="shape of text"),
        pytest.param(second(shape=[2.0]), DATA, id="shape of floats"),
        pytest.param(second(shape=[True, 2]), DATA, id="shape of truth values"),
        pytest.param(second(shape=[-1, -2]), DATA, id="negative shape"),
        pytest.param(second(shape=[2**64, 0]), DATA, id="shape beyond 64 bits"),
        pytest.param(second(shape=[2**62, 2**62, 0], data_offsets=[24, 24]), DATA[:24], id="shape that overflows"),
        pytest.param(second(data_offsets=[40, 24]), DATA, id="offsets reversed"),
        pytest.param(second(data_offsets=[24]), DATA, id="one offset"),
        pytest.param(second(data_offsets=[24, 40, 56]), DATA, id="three offsets"),
        pytest.param(second(data_offsets=[24.0, 40.0]), DATA, id="offsets that are floats"),
        pytest.param(second(data_offsets="24-40"), DATA, id="offsets that are text"),
        pytest.param(second(shape=[2] + [1] * 8), DATA, id="nine dimensions"),
        pytest.param(second(shape=[0] * 2_000_000, data_offsets=[24, 24]), DATA[:24], id="two million dimensions"),
        pytest.param(second(shape=[2**62] * 100_000), DATA, id="a product of 6 million bits"),
        pytest.param(second(dtype="F8_E4M3"), DATA, id="a quantised dtype"),
        pytest.param(HEADER | {"second": [24, 40]}, DATA, id="entry a list"),
        pytest.param(HEADER | {"second": None}, DATA, id="entry null"),
        pytest.param(HEADER | {"second": {}}, DATA, id="entry empty"),
    ],
)
def test_a_damaged_entry_is_refused_by_its_tensors_name(file, header, data):
    file.write_bytes(container(header, data))
    with pytest.raises(ValueError, match=r"damaged\.safetensors: tensor (first|second)\b"):
        read_safetensors(file)


TWINS = json.dumps(HEADER)[:-1] + ', "first": ' + json.dumps(HEADER["first"]) + "}"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid", "run `git lfs pull` there", id="pointer"),
        pytest.param(b"GGUF" + bytes(99), "GGUF", id="GGUF"),
        pytest.param(b"", "not a safetensors file", id="empty"),
        pytest.param(bytes(7), "not a safetensors file", id="seven bytes"),
        pytest.param(bytes(8), "not valid JSON", id="a header of no bytes"),
        pytest.param((2**64 - 1).to_bytes(8, "little") + bytes(99), "no room for its header", id="header too long"),
        pytest.param((100).to_bytes(8, "little") + bytes(99), "no room for its header", id="header one byte too long"),
        pytest.param(container(b"{", b""), "not valid JSON", id="not JSON"),
        pytest.param(container(b"\xff\xfe{}", b""), "not valid JSON", id="not UTF-8"),
        pytest.param(container(b"[" * 100_000, b""), "not valid JSON", id="nested too deeply"),
        pytest.param(container(b'{"first": ' + b"9" * 5000 + b"}", b""), "not valid JSON", id="number too long"),
        pytest.param(container([HEADER], DATA), "not a JSON object", id="a list"),
        pytest.param(container(b"null", b""), "not a JSON object", id="null"),
        pytest.param(container(TWINS.encode(), DATA), "a name appears twice", id="twins"),
        pytest.param(container(b'{"a": {"dtype": "F32", "dtype": "F64"}}', b""), "appears twice", id="twin keys"),
        pytest.param(container(HEADER, DATA + b"\0"), "1 bytes after the last tensor", id="trailing byte"),
        pytest.param(container({}, b"\0"), "1 bytes after the last tensor", id="no tensor but data"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(file, raw, message):
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        read_safetensors(file)


def test_a_header_beyond_the_containers_limit_is_not_read(file):
    """Kills: a header limited by the file's size alone."""
    with open(file, "wb") as sparse:
        sparse.write((MAX_HEADER + 1).to_bytes(8, "little"))
        sparse.truncate(MAX_HEADER + 100)
    with pytest.raises(ValueError, match="no room for its header"):
        read_safetensors(file)
    file.unlink()


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(max_size=3), value, max_size=3),
    max_leaves=4,
)
extents = st.integers(0, 4) | st.integers(0, 40) | st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*CODES.values(), "I32"]) | json_values,
        "shape": st.lists(extents, max_size=4) | json_values,
        "data_offsets": st.just([0, 0]) | st.just([0, 40]) | st.lists(extents, min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=300)
@given(st.dictionaries(st.text(max_size=3), entries | json_values, max_size=3) | json_values)
@example({"all": {"dtype": "U8", "shape": [40], "data_offsets": [0, 40]}})
@example(HEADER | {"none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [40, 40]}})
def test_any_header_is_read_as_it_says_or_refused(file, header):
    """Kills: a shape that torch cannot hold; a size compared with text."""
    file.write_bytes(container(header, DATA))
    try:
        tensors = read_safetensors(file)
    except ValueError as error:
        assert "damaged.safetensors: " in str(error)  # noqa: PT017
    else:
        assert {name: list(t.shape) for name, t in tensors.items()} == {n: e["shape"] for n, e in header.items()}
        assert sum(t.numel() * t.element_size() for t in tensors.values()) == len(DATA)


# ---- sizes ----


def test_a_file_that_is_mostly_a_hole_is_not_allocated(file):
    """Kills: 19 GB of memory for 4 kB on the disk. Where a file system keeps no holes the file is what it says."""
    header = {"a": {"dtype": "F32", "shape": [2**28], "data_offsets": [0, 2**30]}}
    raw = container(header, b"")
    with open(file, "wb") as sparse:
        sparse.write(raw)
        sparse.truncate(len(raw) + 2**30)
    if os.stat(file).st_blocks * 512 > 2**29:
        pytest.skip("this file system writes holes out")
    with pytest.raises(ValueError, match=r"damaged\.safetensors: most of its \d+ bytes were never written"):
        read_safetensors(file)
    file.unlink()


def test_a_file_with_small_holes_is_read(file):
    """Zeros that a copy left out are no attack. Kills: any hole at all refused."""
    tensors = {"a": torch.ones(2**20), "zeros": torch.zeros(2**20)}
    header, data = parts(tensors)
    raw = container(header, b"")
    with open(file, "wb") as sparse:
        sparse.write(raw + data[: 2**22])
        sparse.truncate(len(raw) + 2**23)
    assert not hollow(file, len(raw) + 2**23)
    assert read_safetensors(file)["zeros"].equal(tensors["zeros"])


# ---- written ----


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    """Kills: the file opened for writing in its own place."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail():
        with write_atomically(path) as file:
            file.write(b"new, half of it")
            file.flush()
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    with write_atomically(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_tensor_that_cannot_be_read_leaves_the_old_file(file):
    """Kills: tensors written one by one over the old ones. A tensor on the device "meta" has no bytes to write."""
    write_safetensors(file, {"a": torch.ones(3)})
    with pytest.raises(NotImplementedError):
        write_safetensors(file, {"a": torch.zeros(3), "b": torch.zeros(3, device="meta")})
    assert read_safetensors(file)["a"].equal(torch.ones(3))


@given(st.lists(st.sampled_from([*CODES]), max_size=4), st.integers(0, 99))
def test_what_is_written_is_read_and_is_the_container(file, dtypes, seed):
    """Kills: data that does not start where the header ends, or not on a multiple of eight."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"t{i}": torch.randint(0, 2, (i, 3), generator=generator).to(dtype) for i, dtype in enumerate(dtypes)}
    write_safetensors(file, tensors)
    header, data = parts(tensors)
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    assert json.loads(raw[8 : 8 + length]) == {"__metadata__": {"format": "pt"}, **header}
    assert raw[8 + length :] == data
    read = read_safetensors(file)
    assert all(read[name].equal(tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
