"""Files: whole or absent, JSON with limits, hashes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from pelagia.core.files import atomic_path, atomic_write, read_json, sha256, write_bytes, write_json, write_text
from pelagia.errors import FormatError, OptionError


def test_text_and_bytes_are_written_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "folder" / "a.txt", "zwölf\n")
    write_bytes(tmp_path / "b.bin", b"\0\1\r\n")
    assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == "zwölf\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\0\1\r\n"


def test_an_error_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(TypeError), atomic_write(target, "w") as stream:
        stream.writelines(["half of the ne", 5])  # type: ignore[list-item]
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_new_content_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with atomic_write(target) as stream:
        stream.write(b"new")
        stream.flush()
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_a_path_keeps_its_suffix_and_survives_long_names(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 250 + ".tif")
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".tif"
        temporary.write_bytes(b"x")
    assert target.read_bytes() == b"x"


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert os.stat(tmp_path / "a").st_mode == os.stat(tmp_path / "b").st_mode


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError, match="folder"):
        write_text(tmp_path, "x")
    with pytest.raises(OptionError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "x")
    with pytest.raises(OptionError, match="mode"), atomic_write(tmp_path / "a", "a"):  # type: ignore[arg-type]
        pass


def test_sha256(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(FormatError, match="cannot read"):
        sha256(tmp_path / "absent")


def test_json_round_trip_with_numpy_values(tmp_path: Path) -> None:
    value = {"a": np.arange(3), "b": np.float64(0.1), "c": Path("x/y"), "ü": [True, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == {"a": [0, 1, 2], "b": 0.1, "c": "x/y", "ü": [True, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    with pytest.raises(TypeError, match="no JSON form"):
        write_json(tmp_path / "a.json", {"a": object()})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', ":2:"),
        (b"", "not JSON"),
        (b'"\xff"', "UTF-8"),
        (b"[" * 100_000, "nested"),
        (b"[" + b"1," * 1000 + b"1]", "limit"),
    ],
)
def test_bad_json_says_where(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_json(path, 1000 if message == "limit" else 1 << 30)


def test_json_tolerates_a_byte_order_mark_and_names_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([1]).encode())
    assert read_json(path) == [1]
    with pytest.raises(FormatError, match="does not exist"):
        read_json(tmp_path / "absent.json")
