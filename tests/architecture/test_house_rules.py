"""Rules of the house that no linter knows."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN_ROOMS = {"utils", "util", "helpers", "common", "misc", "core", "base"}


def tracked(*patterns: str) -> list[Path]:
    """Files of the project: what git tracks, or would."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listing.stdout.split() if (ROOT / name).is_file()]


def readable(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None  # data, pictures


def test_no_room_is_named_for_nothing() -> None:
    names = {part.removesuffix(".py") for path in tracked("*.py") for part in path.parts}
    assert not names & FORBIDDEN_ROOMS


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
    allowed = {ROOT / "train.py", ROOT / "musicnet" / "cli.py"}
    guilty = []
    for path in tracked("musicnet/*.py", "callbacks/*.py", "train.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            if any(name.split(".")[0] in {"hydra", "omegaconf"} for name in modules):
                guilty.append(path)
    assert set(guilty) <= allowed


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
