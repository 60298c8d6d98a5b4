"""What the README tells a user to type, typed. Its make targets are what CI runs."""

import re
import shlex
from pathlib import Path

import pytest

import train
from musicnet import __main__ as lightning_door

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
COMMANDS = re.findall(
    r"^(python (?:train\.py|-m musicnet) .+)$|`(python train\.py [^`]+)`",
    (ROOT / "README.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)
# Enough to pass through every stage of a run; its length is not what is tested here.
SHORT = (
    "trainer.max_epochs=1",
    "+trainer.limit_train_batches=1",
    "+trainer.limit_val_batches=1",
    "trainer.enable_progress_bar=false",
)
JUDGED_TOO_EARLY = {0, 3, 4}  # a run of one batch need not pass the overfit check


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", [line or inline for line, inline in COMMANDS])
def test_a_command_of_the_readme_runs(command: str, tmp_path: Path, finished_run: Path) -> None:
    recording = ROOT / "tests" / "data" / "ris_pilot_48.npz"
    filled = command.replace("FILE.npz", str(recording))
    filled = filled.replace("runs/overfit/<run>", str(finished_run))
    words = shlex.split(filled)[1:]
    if words[0] == "train.py":
        few = ["data.init_args.n_scenes=32"] if "data=recorded" in words else []
        exit_code = train.run([*words[1:], *SHORT, *few, f"trainer.default_root_dir={tmp_path}"])
        assert exit_code in JUDGED_TOO_EARLY
        assert list(tmp_path.glob("*/*/config.yaml"))
    elif words[2] == "localize":
        found = tmp_path / "positions.json"
        words = [str(found) if word == "positions.json" else word for word in words[2:]]
        assert lightning_door.run(words) == 0
        assert found.exists()
    elif words[2] in {"doctor", "inspect"}:
        assert lightning_door.run(words[2:]) in JUDGED_TOO_EARLY
    elif words[2] == "simulate":
        target = tmp_path / words.pop()
        assert lightning_door.run([*words[2:], str(target)]) == 0
        assert target.exists()
    elif words[2] == "evaluate":
        names = {"figures.json": str(tmp_path / "figures.json"), "pictures": str(tmp_path / "p")}
        words = [names.get(word, word) for word in words[2:]]
        assert lightning_door.run([*words, "--quick"]) == 0
        assert (tmp_path / "figures.json").exists()
        assert list((tmp_path / "p").glob("*.png"))
    else:
        assert lightning_door.run([*words[2:], f"--trainer.default_root_dir={tmp_path}"]) in {0, 3}
