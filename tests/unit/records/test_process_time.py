import subprocess
import sys
import time
from pathlib import Path

import pytest

from musicnet.records import process_time
from musicnet.records.process_time import seconds_since_start

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process started")
def test_the_time_before_the_import_counts() -> None:
    program = (
        "import time; time.sleep(0.3)\n"
        "from musicnet.records.process_time import seconds_since_start\n"
        "print(seconds_since_start())"
    )
    before = time.monotonic()
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 0.29 <= float(answer.stdout) <= time.monotonic() - before + 0.02


def test_without_proc_the_count_starts_with_the_module(monkeypatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(process_time, "_LOADED", time.monotonic() - 100.0)
    assert seconds_since_start() == pytest.approx(100.0, abs=5.0)
