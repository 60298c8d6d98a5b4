"""Kills writers of checkpoints, fills their disks, and damages their files."""

import argparse
import ctypes
import errno
import hashlib
import io
import mmap
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from fault_runs import KINDS, TINY, Process, Tally, drawn, run_folders

from musicnet.gate.checkpoint_files import (
    LAST,
    PREVIOUS,
    DamagedCheckpointError,
    WholeCheckpoints,
    last_whole,
    read_checkpoint_file,
)
from musicnet.records.atomic_files import sweep_leftovers

_PADDING = 1 << 20
"""Bytes that are added to a run's checkpoint, so that writing takes time enough to be hit."""
_PR_SET_PDEATHSIG = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this campaign alone; `--n` is the number of kills."""
    parser.set_defaults(n=200)
    parser.add_argument("--disks", type=int, default=20, help="full disks")
    parser.add_argument("--flips", type=int, default=1000, help="flipped bits and cut ends")


def run(options: argparse.Namespace) -> Tally:
    """Do all three with the checkpoint of a real run."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        words = (*TINY, *next(iter(KINDS.values())), f"trainer.default_root_dir={home / 'run'}")
        Process(words, home / "run.txt").wait()
        (folder,) = run_folders(home / "run")
        checkpoint = read_checkpoint_file(folder / "checkpoints" / LAST)
        checkpoint["padding"] = torch.rand(_PADDING // 4)
        for number in range(options.n):
            faults = _killed(checkpoint, home / f"kill {number}", drawn(options.seed, "k", number))
            tally.count("writing", faults, f"kill {number}")
            shutil.rmtree(home / f"kill {number}")
        for number in range(options.disks):
            faults = _filled(checkpoint, home / f"disk {number}", drawn(options.seed, "d", number))
            tally.count("full disks", faults, f"disk {number}")
        _damage(tally, folder / "checkpoints", home / "damaged", options)
    return tally


def _killed(checkpoint: dict[str, Any], folder: Path, lots: Random) -> list[str]:
    """Kill a process that saves again and again, inside a save; what lies there must be whole."""
    # half of the writers have their temporary files on another file system
    other = Path("/dev/shm") if lots.random() < 0.5 and Path("/dev/shm").is_dir() else None
    inside = mmap.mmap(-1, 16)
    folder.mkdir()
    pid = os.fork() or _save_for_ever(checkpoint, folder / LAST, inside, other)
    while int.from_bytes(inside[8:], "little") < 2:  # there is something to lose
        time.sleep(0.001)
    for _ in range(10_000):
        time.sleep(lots.uniform(0, 0.02))
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        if inside[0]:
            break  # stopped inside a save
        os.kill(pid, signal.SIGCONT)
    saved = int.from_bytes(inside[8:], "little")
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    faults = []
    if not inside[0] or os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        faults.append("the kill did not fall into a save: no fault, no proof")
    try:
        found = read_checkpoint_file(folder / LAST)["number"]
        if found not in (saved, saved + 1):
            faults.append(f"save {found} lies there, not {saved} or the one after it")
        read_checkpoint_file(folder / PREVIOUS)
    except (OSError, DamagedCheckpointError) as error:
        faults.append(str(error))
    sweep_leftovers(folder)
    left = {path.name for path in folder.iterdir()} - {LAST, PREVIOUS, "manifest.json"}
    return [*faults, *(f"{name} is left" for name in left)]


def _save_for_ever(
    checkpoint: dict[str, Any], path: Path, inside: mmap.mmap, temporary: Path | None
) -> int:
    """Save, count, and tell the parent when a save is going on."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if temporary is not None:
        tempfile.tempdir = str(temporary)
        os.environ["TMPDIR"] = str(temporary)
    number = 0
    while True:
        number += 1
        inside[0] = 1
        WholeCheckpoints().save_checkpoint(checkpoint | {"number": number}, path)
        inside[0] = 0
        inside[8:] = number.to_bytes(8, "little")


def _filled(checkpoint: dict[str, Any], folder: Path, lots: Random) -> list[str]:
    """Save to a disk that is full; the file of before must lie there."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    size = buffer.tell()
    faults = []
    with _small_disk(folder, 4 * size) as limit:
        WholeCheckpoints().save_checkpoint(checkpoint | {"number": 1}, folder / LAST)
        before = hashlib.sha256((folder / LAST).read_bytes()).hexdigest()
        error = _save_without_room(checkpoint, folder, limit, lots.randrange(size))
        if error not in (errno.ENOSPC, errno.EFBIG):
            faults.append(f"the save did not meet a full disk but {error}: no fault, no proof")
        try:
            if read_checkpoint_file(folder / LAST)["number"] != 1:
                faults.append("another file lies there")
        except (OSError, DamagedCheckpointError) as damage:
            faults.append(str(damage))
        if hashlib.sha256((folder / LAST).read_bytes()).hexdigest() != before:
            faults.append("the old file has changed")
        faults += [f"{path.name} is left" for path in folder.glob(".*.tmp")]
    return faults


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[int | None]:
    """A disk of so many bytes, mounted here; None if it may not be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        print("no disk may be mounted: a limit on the size of files stands in for it")
    try:
        yield size if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _save_without_room(
    checkpoint: dict[str, Any], folder: Path, size: int | None, room: int
) -> int | None:
    """Save where only so many bytes can be written; the number of the error."""
    filler = folder / "filler"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size is None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    else:
        free = shutil.disk_usage(folder).free
        with filler.open("wb") as file:
            file.write(b"\0" * max(free - room, 0))
    try:
        WholeCheckpoints().save_checkpoint(checkpoint | {"number": 2}, folder / LAST)
    except OSError as error:
        return error.errno
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return None


def _damage(tally: Tally, source: Path, folder: Path, options: argparse.Namespace) -> None:
    """Flip bits and cut ends: each must be found, and the file before it be gone on from."""
    content = (source / LAST).read_bytes()
    shutil.copytree(source, folder)
    for number in range(options.flips):
        lots = drawn(options.seed, "f", number)
        damaged = bytearray(content)
        if number % 4:
            damaged[lots.randrange(len(damaged))] ^= 1 << lots.randrange(8)
        else:
            del damaged[lots.randrange(len(damaged)) :]
        (folder / LAST).write_bytes(damaged)
        faults = [] if bytes(damaged) != content else ["nothing was damaged"]
        try:
            read_checkpoint_file(folder / LAST)
            faults.append("it was read as if it were whole")
        except DamagedCheckpointError as error:
            if str(folder / LAST) not in str(error):
                faults.append(f"the file is not named: {error}")
        if number % 50 == 0 and last_whole(folder) != folder / PREVIOUS:
            faults.append("the file before it was not taken")
        tally.count("damaged files", faults, f"file {number}")
