"""Where a run comes from: which code, configuration, data, versions and host.

A configuration comes in; `provenance.json` in the run folder goes out. Log rows, checkpoints and
results carry the run id, so that none can be read as another run's.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from musicnet.records.atomic_files import write_json
from musicnet.records.plain_data import from_plain
from musicnet.records.run_folder import new_run_id

FILE_NAME = "provenance.json"
_PACKAGES = (
    "musicnet",
    "torch",
    "lightning",
    "torchmetrics",
    "numpy",
    "jsonargparse",
    "hydra-core",
)


@dataclass(frozen=True)
class Provenance:
    """What must be known to tell one run from another and to run it again.

    Args:
        run_id: eight hexadecimal digits, new for every run.
        started: ISO time with its zone.
        git_commit: the commit of the code; None outside a repository.
        git_dirty: the code had changes that no commit holds; None outside a repository.
        config_hash: sha256 of the resolved configuration; None if there was none.
        data_hash: sha256 of recorded data; None for simulated data.
        versions: Python and the packages that decide numbers.
        host: the computer's name.
        device: what trained.
        threads: of the processor that share one product; None if nobody said. The last bits of a
            number may depend on it.
        ckpt_path: the checkpoint that the run went on from in this new folder; None began anew.
    """

    run_id: str
    started: str
    git_commit: str | None
    git_dirty: bool | None
    config_hash: str | None
    data_hash: str | None
    versions: dict[str, str]
    host: str
    device: str
    threads: int | None = None
    ckpt_path: str | None = None

    def write(self, folder: str | Path) -> Path:
        """Write `provenance.json` into the run folder.

        Raises:
            FileExistsError: the folder belongs to another run already.
        """
        path = Path(folder) / FILE_NAME
        if path.exists():
            raise FileExistsError(
                f"each run needs a folder of its own: got {folder}, which run "
                f"{read_provenance(folder).run_id} has. Choose a new folder."
            )
        write_json(path, asdict(self))
        return path


def collect_provenance(
    config: Mapping[str, Any] | None = None,
    *,
    run_id: str | None = None,
    data_hash: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    ckpt_path: str | Path | None = None,
    code_folder: str | Path | None = None,
) -> Provenance:
    """Look around: code, versions, host and time of a run that starts now.

    Args:
        config: the resolved configuration as plain data; None if there is none.
        run_id: the run's id (default: a new one).
        data_hash: sha256 of recorded data.
        device: what will train (default: this processor).
        threads: of the processor that share one product.
        ckpt_path: the checkpoint that it goes on from.
        code_folder: a folder of the repository that holds the code (default: the working folder).

    Example:
        >>> origin = collect_provenance({"seed": 0}, run_id="c0ffee00", device="cpu")
        >>> origin.run_id, origin.config_hash == hash_config({"seed": 0}), origin.data_hash
        ('c0ffee00', True, None)
    """
    commit, dirty = _git_state(Path.cwd() if code_folder is None else Path(code_folder))
    return Provenance(
        run_id=new_run_id() if run_id is None else run_id,
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        git_commit=commit,
        git_dirty=dirty,
        config_hash=None if config is None else hash_config(config),
        data_hash=data_hash,
        versions=_versions(),
        host=platform.node(),
        device=f"{platform.machine()}, {os.cpu_count()} processors" if device is None else device,
        threads=threads,
        ckpt_path=None if ckpt_path is None else str(Path(ckpt_path).absolute()),
    )


def read_provenance(folder: str | Path) -> Provenance:
    """Read the `provenance.json` of a run folder.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: the file is not a provenance.
    """
    path = Path(folder) / FILE_NAME
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be JSON in UTF-8: got {error}. Restore the file.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON: got {error}. Restore the file.") from error
    return from_plain(Provenance, tree, str(path), fill_defaults=True)


def hash_config(config: Mapping[str, Any]) -> str:
    """The sha256 of a configuration, whatever the order of its keys.

    Example:
        >>> hash_config({"a": 1, "b": 2}) == hash_config({"b": 2, "a": 1})
        True
    """
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def hash_file(path: str | Path) -> str:
    """The sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@cache
def identify_code(folder: Path) -> dict[str, Any]:
    """Which program it is that answers, to tell by what must not be mixed.

    Args:
        folder: of the package.

    Returns:
        The sha256 of all its sources, whether committed or not, and the versions that decide
        numbers.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n{hash_file(path)}\n".encode())
    return {"sha256": digest.hexdigest(), "versions": _versions()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_state(folder: Path) -> tuple[str | None, bool | None]:
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    status = _git(folder, "status", "--porcelain")
    return commit, None if status is None else bool(status)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None: no git, no repository, no commit yet."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
