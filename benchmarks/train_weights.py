"""Trains a network and leaves it, with its card, where the package ships weights from.

    python benchmarks/train_weights.py ris                        # train, then export
    python benchmarks/train_weights.py ris trainer.max_epochs=60  # with Hydra overrides
    python benchmarks/train_weights.py ris --run RUN_FOLDER       # export a finished run
    python benchmarks/train_weights.py ris --run RUN_FOLDER --figures figures.json

Out of checkpoints/last.ckpt come the averaged weights if the run kept an average, else the raw
ones. NAME.safetensors and the readable card NAME.md are written; both say which run they are of,
and ``--figures`` puts a JSON file of results into both.
"""

import argparse
import json
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from musicnet.learning.checkpoint_weights import read_checkpoint
from musicnet.networks.pretrained import WEIGHTS, Pretrained, save_pretrained
from musicnet.records.atomic_files import write_text
from musicnet.records.provenance import hash_file, read_provenance
from musicnet.scene.scene import Scene

ROOT = Path(__file__).parents[1]
LAST = Path("checkpoints") / "last.ckpt"


def train(name: str, overrides: list[str], runs: Path) -> Path:
    """Trains an experiment; the folder of its run."""
    before = set(runs.glob("*/*/provenance.json"))
    words = ["train.py", f"experiment={name}", *overrides, f"trainer.default_root_dir={runs}"]
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
    if ended.returncode:
        raise SystemExit(ended.returncode)
    made = sorted(set(runs.glob("*/*/provenance.json")) - before)
    if len(made) != 1:
        raise ValueError(f"a training must leave one run in {runs}: got {len(made)} new ones.")
    return made[0].parent


def card_of(
    run: Path, trained: Pretrained, overrides: list[str], figures: dict[str, Any] | None
) -> dict[str, Any]:
    """What a user of the weights must know; JSON types."""
    origin = read_provenance(run)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    # whoever moves a run folder must keep its files' times
    ended = datetime.fromtimestamp((run / LAST).stat().st_mtime, timezone.utc)
    minutes = (ended - datetime.fromisoformat(origin.started)).total_seconds() / 60.0
    return {
        "experiment": config["experiment"],
        "command": shlex.join(
            ["python", "train.py", f"experiment={config['experiment']}", *overrides]
        ),
        "run_id": origin.run_id,
        "config_hash": origin.config_hash,
        "seed": config["seed_everything"],
        "git_commit": origin.git_commit,
        "git_dirty": origin.git_dirty,
        "started": origin.started,
        "minutes": round(minutes, 1),
        "device": origin.device,
        "versions": origin.versions,
        "n_parameters": sum(one.numel() for one in trained.network.parameters()),
        **trained.card,
        "limits": limits_of(trained.scene, calibrates=trained.network.calibration is not None),
        "figures": figures,
    }


def limits_of(scene: Scene, *, calibrates: bool = False) -> list[str]:
    """What the weights were trained for, hence where they may be used."""
    law, bounds = scene.sources, scene.region.bounds
    if scene.surface is None:
        heard = f"an array of {scene.n_elements} elements ({scene.array.kind}), any number of"
        heard += f" snapshots (trained with at most {scene.n_snapshots})"
    else:
        heard = f"a surface of {scene.n_elements} elements ({scene.array.kind}) heard by"
        heard += f" {scene.surface.n_antennas} antennas in {scene.surface.n_codes} codes"
    box = ", ".join(f"{name} from {low:.4g} to {high:.4g}" for name, (low, high) in bounds.items())
    counts = f"{law.n_min} to {law.n_max}" if law.n_min < law.n_max else str(law.n_max)
    loudness = "in total" if law.snr_of == "total" else "per source"
    limits = [
        f"{heard}; {scene.symbols} symbols",
        "elements at the places of the scene, to a thousandth of a wavelength",
        f"sources searched for within {box} (1/m)",
        f"{counts} sources at {law.snr_db[0]:g} to {law.snr_db[1]:g} dB {loudness}",
    ]
    if not scene.far_field:
        limits.append(f"near field at a wavelength of {scene.wavelength_m:g} m")
    if scene.is_alike:
        limits.append("coherent sources in phase and equally loud; never chosen by itself")
    if scene.imperfections is not None or calibrates:
        limits.append("for the one device whose errors it was trained with; never chosen by itself")
    return limits


def page(name: str, card: dict[str, Any], sha256: str) -> str:
    """The card as a page for people."""
    changed = " with changes that no commit holds" if card["git_dirty"] else ""
    rows = {
        "training": f"`{card['command']}`",
        "time": f"{card['minutes']} minutes on {card['device']}",
        "weights": f"{card['weights']}, {card['n_parameters']} numbers, after {card['steps']} "
        f"steps in {card['epochs']} epochs",
        "seed": card["seed"],
        "code": f"{card['git_commit']}{changed}",
        "configuration": f"sha256 {card['config_hash']}",
        "run": f"{card['run_id']}, started {card['started']}",
        "file": f"`{name}.safetensors`, sha256 {sha256}",
    }
    lines = [f"# Weights `{name}`", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows.items()]
    lines += ["", "## Made for", "", *(f"- {limit}" for limit in card["limits"])]
    lines += ["", "## Figures", ""]
    if card["figures"] is None:
        lines += ["Not measured."]
    else:
        lines += ["```json", json.dumps(card["figures"], indent=2, ensure_ascii=False), "```"]
    return "\n".join(lines) + "\n"


def export(name: str, run: Path, overrides: list[str], figures: Path | None, folder: Path) -> Path:
    """Writes weights and card of a finished run; the file of the weights."""
    told = None if figures is None else json.loads(figures.read_text(encoding="utf-8"))
    trained = read_checkpoint(run / LAST)
    if trained.settings is None:
        raise ValueError(f"{run / LAST} must say the sizes of its network: got none.")
    card = card_of(run, trained, overrides, told)
    if card["experiment"] != name:
        raise ValueError(
            f"{run} must be a run of experiment={name}: got experiment={card['experiment']}."
        )
    target = folder / f"{name}.safetensors"
    save_pretrained(target, trained.network, trained.scene, trained.settings, card)
    write_text(target.with_suffix(".md"), page(name, card, hash_file(target)))
    return target


def main() -> int:
    """Trains or takes a run, and exports it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", help="an experiment of conf/; the weights get its name")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the training")
    parser.add_argument("--run", type=Path, help="a finished run, instead of training")
    parser.add_argument("--figures", type=Path, help="JSON file of results for the card")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="default: musicnet/weights")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs go")
    arguments = parser.parse_intermixed_args()
    name, overrides = arguments.name, arguments.overrides
    try:
        run = arguments.run or train(name, overrides, arguments.runs.absolute())
        target = export(name, run, overrides, arguments.figures, arguments.output)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    print(f"{target} and {target.with_suffix('.md').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
