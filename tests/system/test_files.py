"""Files: whole or not there, nobody else's ever removed, nothing waited for that never comes, locks that say so."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.run import directory
from dpo_min.system import files
from dpo_min.system.files import Lock, crc32, make_directory, open_regular, read_json, sha256, write_atomically


def fail(written):
    raise KeyError(written)


def test_a_file_is_whole_or_the_one_before_it(tmp_path):
    """Kills: a file written in place; what is left of a failed one; a name that is not flushed."""
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(KeyError), write_atomically(path) as file:
        fail(file.write(b"half"))
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"before"
    with write_atomically(path) as file:
        file.write(b"after")
        (partial,) = files.partials(tmp_path)
    assert (
        [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"after" and partial.name.startswith("file.dpo_min-")
    )


@given(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
        lambda name: name not in (".", "..")
    )
)
@example("film.mkv")
@example("model.safetensors.dpo_min-1234567")
@example("config.json.0a1b2c3d")
@example("step-00000006")
def test_a_file_without_this_programs_mark_is_nobodys_to_remove(tmp_path_factory, name):
    """Kills: every *.partial below --out removed, whoever wrote it (`--out .` beside a download)."""
    out = tmp_path_factory.mktemp("out")
    theirs, ours = out / f"{name}.partial", files.partial_name(out / "config.json")
    for place in (theirs, ours, out / "deep" / "x.dpo_min-12345678.partial"):
        place.parent.mkdir(exist_ok=True)
        place.touch()
        os.utime(place, (1, 1))
    directory.sweep(out)
    assert theirs.exists() and not ours.exists() and (out / "deep" / "x.dpo_min-12345678.partial").exists()
    with write_atomically(out / name):
        pass
    assert theirs.exists()


def test_what_a_killed_run_was_writing_is_removed_where_a_run_writes_and_nowhere_else(tmp_path):
    """Kills: half a checkpoint that stays for ever; the folder of another run below this one; a link followed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    for place in ("checkpoint", "best", "runs/other/checkpoint"):
        half = tmp_path / "out" / place / "step-00000006.dpo_min-00000006.partial"
        half.mkdir(parents=True)
        (half / "state.json").touch()
    (tmp_path / "out" / "x.dpo_min-00000000.partial").symlink_to(tmp_path / "elsewhere")
    directory.sweep(tmp_path / "out")
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.partial"))
    assert left == ["out/runs/other/checkpoint/step-00000006.dpo_min-00000006.partial"]
    assert (tmp_path / "elsewhere" / "precious").exists()


@pytest.mark.parametrize("read", [open_regular, read_json, sha256, crc32, Lock, files.read_text])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, read):
    """Kills: a named pipe in a copied run that is waited for; /dev/zero that is read for ever; a directory."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises((ValueError, OSError), match=r"not a regular file|irectory"):
            read(path)


@pytest.mark.parametrize("text", ["[" * 10**5, "9" * 5000, '{"n": ' + "9" * 5000 + "}", "{", "[]", "\xff", ""])
def test_what_is_no_json_object_is_one_line_that_names_the_file(tmp_path, text):
    """Kills: a number of too many digits, whose error names no file; a RecursionError."""
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json: ") as error:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(error.value)


def test_new_directories_are_flushed_into_those_above_them(tmp_path, monkeypatch):
    """Kills: a run whose directory is gone after a power cut, with all that was flushed into it."""
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append(path))
    make_directory(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    make_directory(tmp_path / "a" / "b" / "c")
    assert len(synced) == 3


HOLD = """
import sys
from dpo_min.system.files import Lock
with Lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_and_waiting_for_it_says_so(tmp_path, capsys, monkeypatch):
    """Kills: a wait without a word; one without end; a lock that outlives its process."""
    path = tmp_path / ".lock"
    environment = os.environ | {"PYTHONPATH": "."}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError):
            Lock(path)
        assert capsys.readouterr().out == ""
        monkeypatch.setattr(files, "PATIENCE", 0)
        with pytest.raises(BlockingIOError):
            Lock(path, wait=0.2)
        assert capsys.readouterr().out == f"waiting for another program, which holds {path}\n"
        sleep = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: (holder.kill(), holder.wait(), sleep(0)))
        with Lock(path, wait=60):
            pass
        assert capsys.readouterr().out.count("waiting") == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, capsys, monkeypatch, number):
    """Kills: a run that cannot begin on a network's file system."""

    def without(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", without)
    with Lock(tmp_path / ".lock"):
        assert "start one program at a time there" in capsys.readouterr().out


def test_a_file_system_that_cannot_flush_a_directory_is_none_to_give_up_for(tmp_path, monkeypatch):
    """Kills: EINVAL of a directory's fsync taken for a failed write; EIO taken for that."""
    for number, fails in ((errno.EINVAL, False), (errno.EIO, True)):

        def fsync(descriptor, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)
        if fails:
            with pytest.raises(OSError, match="error"):
                files.sync(tmp_path)
        else:
            files.sync(tmp_path)
