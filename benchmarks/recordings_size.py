"""One file of many scenes: time, memory, and an interruption on the way."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from musicnet.recordings.checks import FORMAT

_PROGRAM = """
import json, resource, signal, sys
from musicnet.commands import localize
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells silence it in the background
code = localize.run(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
figures = {"code": code, "cpu_s": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss / 1e3}
with open(sys.argv[1], "w") as file:
    json.dump(figures, file)
sys.exit(code)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the measurement is asked with."""
    parser.add_argument("--n", type=int, default=100_000, help="scenes of the file")
    parser.add_argument("--snapshots", type=int, default=20)
    parser.add_argument("--method", default="esprit")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Localises a tenth of the scenes, all of them, and all of them with an interruption."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n_scenes, file in ((given.n // 10, "tenth.npz"), (given.n, "whole.npz")):
            write_scenes(folder / file, n_scenes, given.snapshots)
        tenth = _run(folder, "tenth.npz", "tenth.csv", given.method)
        whole = _run(folder, "whole.npz", "whole.csv", given.method)
        n_before = _interrupted(folder, "whole.npz", "again.csv", given.method, given.n // 2)
        again = _run(folder, "whole.npz", "again.csv", given.method)
        is_same = _rows(folder / "whole.csv") == _rows(folder / "again.csv")
        return {
            "scenes": given.n,
            "method": given.method,
            "megabytes": (folder / "whole.npz").stat().st_size / 1e6,
            "scenes_per_cpu_s": given.n / whole["cpu_s"],
            "peak_mb_of_a_tenth": tenth["mb"],
            "peak_mb": whole["mb"],
            "interrupted_after": n_before,
            "cpu_s_whole": whole["cpu_s"],
            "cpu_s_of_the_rest": again["cpu_s"],
            "is_same_after_interruption": is_same,
        }


def write_scenes(path: Path, n_scenes: int, n_snapshots: int) -> None:
    """Lines of 8 sensors with one source each, written part by part: no memory holds them."""
    n_sensors, at_once = 8, 4096
    header = np.lib.format
    x = np.arange(n_sensors) - 3.5
    known = {
        "format": np.array(FORMAT),
        "operator": np.eye(n_sensors, dtype=np.complex64)[None, None],
        "operator_index": np.zeros(n_scenes, np.int32),
        "element_positions": np.stack((0.5 * x, 0 * x, 0 * x), axis=1),
        "wavelength": np.array(1.0),
        "noise_power": np.ones(n_scenes, np.float32),
        "field": np.array("far"),
        "azimuth_deg": np.array([-90.0, 90.0]),
        "elevation_deg": np.array([0.0, 0.0]),
        "range_m": np.array([np.inf, np.inf]),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in known.items():
            with archive.open(f"{key}.npy", "w") as file:
                header.write_array(file, value)
        with archive.open("y.npy", "w", force_zip64=True) as file:
            shape = (n_scenes, n_snapshots, n_sensors)
            facts = {"descr": "<c8", "fortran_order": False, "shape": shape}
            header.write_array_header_1_0(file, facts)
            for first in range(0, n_scenes, at_once):
                size = (min(at_once, n_scenes - first), n_snapshots, n_sensors)
                lot = np.random.default_rng([0, first])
                u = lot.uniform(-0.9, 0.9, (size[0], 1, 1))
                sent = _complex(lot, (*size[:2], 1)) * 10.0 ** (10.0 / 20.0)
                heard = sent * np.exp(1j * np.pi * u * x) + _complex(lot, size)
                file.write(heard.astype(np.complex64).tobytes())


def _complex(lot: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    drawn: np.ndarray = (lot.normal(size=shape) + 1j * lot.normal(size=shape)) / np.sqrt(2.0)
    return drawn


def _command(folder: Path, file: str, target: str, method: str) -> list[str]:
    words = [str(folder / file), "--method", method, "--output", str(folder / target)]
    return [sys.executable, "-c", _PROGRAM, str(folder / f"{target}.used"), *words]


def _run(folder: Path, file: str, target: str, method: str) -> dict[str, float]:
    subprocess.run(
        _command(folder, file, target, method), check=True, stdout=subprocess.DEVNULL, cwd=folder
    )
    used: dict[str, float] = json.loads((folder / f"{target}.used").read_text(encoding="utf-8"))
    return used


def _interrupted(folder: Path, file: str, target: str, method: str, after: int) -> int:
    """Ends the command by SIGINT when it has so many scenes; how many it had."""
    journal = folder / f"{target}.partial"
    with subprocess.Popen(_command(folder, file, target, method), cwd=folder) as process:
        while _n_lines(journal) <= after:
            if process.poll() is not None:
                raise RuntimeError("it ended before it could be interrupted")
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        code = process.wait()
    if code != 128 + signal.SIGINT or (folder / target).exists():
        raise RuntimeError(f"an interruption ended with {code}")
    return _n_lines(journal) - 1


def _n_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _rows(path: Path) -> list[str]:
    """All that is said of the scenes; run ids differ."""
    lines = path.read_text(encoding="utf-8").splitlines()
    column = lines[0].split(",").index("run_id")
    return [",".join(c for i, c in enumerate(line.split(",")) if i != column) for line in lines]
