"""The README's file tree is the tree on the disk, its commands exist, and the version is written once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pelagia"


def _tree() -> dict[str, set[str]]:
    """Folder -> names of modules, from the block that begins with `src/pelagia/`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```\nsrc/pelagia/(.*?)```", text, flags=re.DOTALL)
    assert block is not None
    found: dict[str, set[str]] = {}
    folder = ""
    for line in block[1].splitlines()[1:]:
        words = line.split()
        if words and words[0].endswith("/"):
            folder, words = words[0].rstrip("/"), words[1:]
        elif words and line.startswith("  ") and not line.startswith("   "):
            folder = ""
        found.setdefault(folder, set()).update(words)
    return found


def _disk() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if not path.name.startswith("__"):
            found.setdefault(path.parent.relative_to(PACKAGE).as_posix().removeprefix("."), set()).add(path.stem)
    return found


def test_tree_is_the_disk() -> None:
    assert _tree() == _disk()


def test_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "SECURITY.md"])
def test_papers_exist(name: str) -> None:
    assert (ROOT / name).stat().st_size > 200


def test_version_is_the_same_everywhere() -> None:
    version = re.search(r'__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert version is not None
    assert f"version: {version[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
