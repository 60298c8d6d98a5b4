"""Real runs of `train.py` in processes of their own, watched, hit at a drawn moment, and compared.

Most processes are forked from this one, which has imported everything and built one run, but
trained nothing: what they then run is `train.py` itself, from its first line, as
`python train.py` does. A share is started afresh.
"""

import ctypes
import hashlib
import json
import logging
import os
import random
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf

from musicnet.cli import MusicCLI, console, launch_environment
from musicnet.gate.checkpoint_files import read_checkpoint_file
from musicnet.records.append_log import read_rows
from musicnet.records.provenance import read_provenance

ROOT = Path(__file__).parents[1]
_TICK = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1
_PATIENCE_S = 600.0

TINY = (
    "experiment=overfit",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
    "trainer.max_epochs=5",
    "model.init_args.network={n_channels: 4, dilations: [1], n_v: 5, n_u: 7, n_rho: 3}",
    "model.init_args.averaging={kind: ema, decay: 0.9}",
    "callbacks.savepoints.init_args.every_n_batches=2",
    "gate.group_norms_every=2",
)
_FRESH = (
    *("data.init_args.n_scenes=null", "data.init_args.passes_per_epoch=1"),
    *("data.init_args.scenes_per_channel=8", "data.init_args.batch_size=8"),
    *("data.init_args.batches_per_epoch=4", "data.init_args.n_val=16"),
)
_RECORDED = (
    *("data=recorded", f"data.init_args.path={ROOT / 'tests' / 'data' / 'ris_pilot_48.npz'}"),
    *("data.init_args.n_scenes=32", "data.init_args.batch_size=8"),
    "data.init_args.passes_per_epoch=1",
)
KINDS: dict[str, tuple[str, ...]] = {
    f"{name}, {n} workers": (*words, f"data.init_args.n_workers={n}")
    for name, words in (("fresh scenes", _FRESH), ("recorded scenes", _RECORDED))
    for n in (0, 1, 2)
}
"""What is trained on, by which words: every loader that a run can have."""

_REFERENCES: dict[tuple[str, ...], "Reference"] = {}


@dataclass
class Tally:
    """What a campaign found.

    Args:
        figures: hits and tries by what was tried.
        misses: what did not hold, a line each.
    """

    figures: dict[str, tuple[int, int]] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)

    def count(self, what: str, faults: Sequence[str], where: str) -> None:
        """Note one try and what was wrong with it, if anything was."""
        hits, tries = self.figures.get(what, (0, 0))
        self.figures[what] = (hits + (not faults), tries + 1)
        self.misses += [f"{what}, {where}: {fault}" for fault in faults]
        if faults or (tries + 1) % 20 == 0:
            print(f"{what}: {self.figures[what][0]} of {tries + 1}", *faults, flush=True)

    def line(self) -> str:
        """All figures on one line, the first one as `hits of tries`."""
        parts = [f"{hits} of {tries}" for hits, tries in self.figures.values()]
        names = list(self.figures)
        first = parts[0] if parts else "nothing was tried"
        return "; ".join([first, *(f"{n} {p}" for n, p in zip(names[1:], parts[1:], strict=True))])


class Process:
    """A run that is going on.

    Args:
        words: Hydra's overrides.
        said: file for what it prints.
        fresh: start a new interpreter; else fork this one.
    """

    def __init__(self, words: Sequence[str], said: Path, *, fresh: bool = False) -> None:
        self.said = said
        self.exit_code: int | None = None
        self.root = Path(next(w for w in words if "default_root_dir" in w).partition("=")[2])
        with said.open("ab") as output:
            if fresh:
                command = [sys.executable, str(ROOT / "train.py"), *words]
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                self.pid = subprocess.Popen(
                    command, stdout=output, stderr=output, env=environment, start_new_session=True
                ).pid
            else:
                sys.stdout.flush()
                self.pid = os.fork() or _be_train(words, output.fileno())

    def is_over(self) -> bool:
        """Whether it has ended; collects it then."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None

    def cpu_seconds(self) -> float:
        """CPU time so far: how far it has come, however busy the machine is."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii")
        except OSError:
            return 0.0
        used = text.rpartition(")")[2].split()[11:13]
        return sum(map(int, used)) / _TICK

    def wait(self, limit: float = _PATIENCE_S) -> int:
        """Wait for its end; a run that hangs is killed, and that is an error."""
        until = time.monotonic() + limit
        while not self.is_over():
            self.give_up_after(until)
            time.sleep(0.01)
        return int(self.exit_code or 0)

    def give_up_after(self, until: float) -> None:
        """Kill a run that hangs, which is an error."""
        if time.monotonic() > until:
            self.send(signal.SIGKILL)
            raise TimeoutError(f"the run hangs: {self.said}")

    def send(self, signum: int) -> None:
        """Send a signal; SIGKILL goes to its workers as well, as where a machine goes down."""
        try:
            os.kill(self.pid, signum)
            if signum == signal.SIGKILL:
                os.killpg(self.pid, signum)
        except ProcessLookupError:
            pass

    def wait_for_folder(self) -> bool:
        """Watch until the run has a folder; False if it was over before."""
        return self._wait_until(lambda: bool(run_folders(self.root)))

    def wait_for_cpu(self, seconds: float) -> bool:
        """Watch until the run has used so much CPU time; False if it was over before."""
        return self._wait_until(lambda: self.cpu_seconds() >= seconds)

    def _wait_until(self, moment: Callable[[], bool]) -> bool:
        """Watch until a moment has come; False if the run was over before."""
        until = time.monotonic() + _PATIENCE_S
        while not self.is_over():
            if moment():
                return True
            self.give_up_after(until)
            time.sleep(0.002)
        return False


def _be_train(words: Sequence[str], output: int) -> int:
    """Become `python train.py`, in a process that was just forked."""
    code = 70
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = [str(ROOT / "train.py"), *words]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed.

    Args:
        words: that start it, but for where it goes.
        exit_code: of its end.
        state: hash of all that it ended with.
        rows: of its log, without the run id.
        began: CPU time when its folder was there, seconds.
        ended: CPU time at its end, seconds.
    """

    words: tuple[str, ...]
    exit_code: int
    state: str
    rows: list[dict[str, Any]]
    began: float
    ended: float

    def faults(self, root: Path, exit_code: int) -> Iterator[str]:
        """How a run that was broken off and taken up differs from this one."""
        if exit_code != self.exit_code:
            yield f"exit code {exit_code}, not {self.exit_code}"
        folders = run_folders(root)
        if len(folders) != 1:
            yield f"{len(folders)} run folders"
            return
        if state_hash(folders[0]) != self.state:
            yield f"another final state in {folders[0]}"
        if rows_of(folders[0]) != self.rows:
            yield f"other log rows in {folders[0]}"


def reference(words: tuple[str, ...], root: Path) -> Reference:
    """Run once without any fault, and measure when there is something to break.

    Campaigns of one process share what they find.
    """
    if not _REFERENCES:
        _warm_up(words, root)
    if words not in _REFERENCES:
        _REFERENCES[words] = _undisturbed(words, root)
    return _REFERENCES[words]


def _warm_up(words: tuple[str, ...], root: Path) -> None:
    """Import what only a run that is being built imports, so that forked ones need not."""
    with console(), launch_environment():
        tree = OmegaConf.to_container(_composed(words), resolve=True)
        tree["trainer"]["default_root_dir"] = str(root.with_name("warm"))
        MusicCLI(tree).release()
    logging.getLogger().handlers.clear()


def _composed(words: tuple[str, ...]) -> Any:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return hydra.compose("train", overrides=list(words))


def _undisturbed(words: tuple[str, ...], root: Path) -> Reference:
    process = Process([*words, f"trainer.default_root_dir={root}"], root.with_suffix(".txt"))
    began = ended = 0.0
    until = time.monotonic() + _PATIENCE_S
    while not process.is_over():
        process.give_up_after(until)
        ended = process.cpu_seconds() or ended
        if not began and run_folders(root):
            began = ended
        time.sleep(0.002)
    folders = run_folders(root)
    if not folders or process.exit_code not in (0, 3):
        raise RuntimeError(f"the undisturbed run failed: {process.said.read_text()}")
    return Reference(
        words, int(process.exit_code), state_hash(folders[0]), rows_of(folders[0]), began, ended
    )


def run_folders(root: Path) -> list[Path]:
    """All run folders below a root."""
    return [path for path in root.glob("*/*") if (path / "provenance.json").exists()]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, without the run id; as text, since nan is not itself."""
    rows = read_rows(folder / "metrics.jsonl", run_id=read_provenance(folder).run_id)
    return [{key: repr(value) for key, value in row.items() if key != "run_id"} for row in rows]


def state_hash(folder: Path) -> str:
    """The sha256 of everything that `last.ckpt` holds, but for paths, times and run ids.

    Weights, optimiser, schedules, counters of gate and loops, averages, random numbers, metrics;
    not what the doctor has seen, who changes nothing.
    """
    checkpoint = read_checkpoint_file(folder / "checkpoints" / "last.ckpt")
    own = checkpoint["callbacks"]
    own.pop("RunDoctor", None)  # watches seconds and memory of a process
    for name in [n for n in own if n.startswith("ModelCheckpoint")]:
        scores = own[name]["best_k_models"]
        own[name] = {Path(path).name: score for path, score in scores.items()}
    for state in own.values():
        for key in ("run_id", "verdict", "length"):
            state.pop(key, None)
    digest = hashlib.sha256()
    _feed(digest, checkpoint)
    return digest.hexdigest()


def _feed(digest: Any, tree: Any) -> None:
    if isinstance(tree, dict):
        for key in sorted(tree, key=str):
            digest.update(f"{key}:".encode())
            _feed(digest, tree[key])
    elif isinstance(tree, list | tuple):
        digest.update(f"[{len(tree)}".encode())
        for one in tree:
            _feed(digest, one)
    elif isinstance(tree, torch.Tensor):
        digest.update(f"{tree.dtype}{tuple(tree.shape)}".encode())
        digest.update(tree.detach().cpu().contiguous().numpy().tobytes())
    else:
        digest.update(repr(tree).encode())


def drawn(seed: int, *words: object) -> random.Random:
    """A source of random numbers for one fault, the same whatever came before it."""
    return random.Random(json.dumps([seed, *map(str, words)]))
