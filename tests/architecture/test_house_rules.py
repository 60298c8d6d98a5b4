"""Rules of the house that no linter knows."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN_ROOMS = {"utils", "util", "helpers", "common", "misc", "core", "base"}


def tracked(*patterns: str, root: Path = ROOT) -> list[Path]:
    """Files of the project: what git tracks, or would."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=root,
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    names = listing.stdout.split("\0")
    return [root / name for name in names if (root / name).is_file()]


def rooms(root: Path = ROOT) -> set[str]:
    """Names of modules, and of the folders that they are in, inside the project."""
    inside = [path.relative_to(root) for path in tracked("*.py", root=root)]
    return {part.removesuffix(".py") for path in inside for part in path.parts}


def readable(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None  # data, pictures


def test_no_room_is_named_for_nothing() -> None:
    assert rooms()
    assert not rooms() & FORBIDDEN_ROOMS


def test_rooms_are_those_of_the_project_wherever_it_lies(tmp_path: Path) -> None:
    clone = tmp_path / "core" / "a clone"
    (clone / "rooms").mkdir(parents=True)
    (clone / "rooms" / "two words é.py").touch()
    subprocess.run(["git", "init", "--quiet"], cwd=clone, check=True)
    assert tracked(root=clone) == [clone / "rooms" / "two words é.py"]
    assert rooms(clone) == {"rooms", "two words é"}


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of one machine, no package registry's host, in any text file."""
    # Written in pieces, or this file would find itself.
    foreign = re.compile("|".join(["/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/", "py" + "pi.org"]))
    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked()
        if (text := readable(path)) and (match := foreign.search(text))
    }
    assert not found


@pytest.mark.parametrize(
    "unsafe",
    [r"weights_only\s*=\s*False", r"allow_pickle\s*=\s*True", r"yaml\.(unsafe_)?load\("],
)
def test_no_reader_can_run_code(unsafe: str) -> None:
    sources = tracked("musicnet/*.py", "callbacks/*.py", "train.py", "benchmarks/*.py")
    assert sources
    found = [path.name for path in sources if re.search(unsafe, path.read_text(encoding="utf-8"))]
    assert not found


def test_conf_names_classes_the_lightning_way() -> None:
    """`_target_` would be a second way to build things, past the parser's checks."""
    files = tracked("conf/*.yaml")
    assert files
    assert not [path.name for path in files if "_target_" in path.read_text(encoding="utf-8")]


def test_only_the_doors_know_hydra() -> None:
    doors = set(tracked("train.py", "musicnet/cli/*.py"))
    assert len(doors) > 1
    guilty = set()
    for path in tracked("musicnet/*.py", "callbacks/*.py", "train.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            if any(name.split(".")[0] in {"hydra", "omegaconf"} for name in modules):
                guilty.add(path)
    assert guilty
    assert guilty <= doors


def test_user_input_is_never_checked_by_assert() -> None:
    """`python -O` drops asserts, and their messages say nothing to a user."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in tracked("musicnet/*.py", "callbacks/*.py", "train.py")
        if "tests" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert not found
