"""Two runs side by side, like with like.

Two readings come in, a table goes out. Losses stand side by side where both runs logged them under
one name, for one task, and at the same optimiser step; where the tasks differ, what differs is
named, and their losses are not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from musicnet.diagnosis.loss_names import loss_name
from musicnet.diagnosis.reading import Reading
from musicnet.diagnosis.run_files import CONFIG_NAME, PREFLIGHT_NAME
from musicnet.diagnosis.saved import Curve

_CELL = 40
# of the data, these say how much of it comes when, and not what it is
_AMOUNTS = frozenset(
    ("batch_size", "batches_per_epoch", "passes_per_epoch", "n_val", "n_workers", "seed")
)


@dataclass(frozen=True)
class Comparison:
    """What stands side by side.

    Args:
        rows: name, value of the first run, value of the second.
        unlike: why their losses cannot be compared; empty if they can.
    """

    rows: tuple[tuple[str, str, str], ...]
    unlike: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The table, and what must be said of it."""
        for reason in self.unlike:
            yield f"could not tell: {reason}"
        width = max(len(name) for name, _, _ in self.rows)
        for name, left, right in self.rows:
            yield f"{name:<{width}}  {left:<{_CELL + 2}}  {right}".rstrip()


def compare(first: Reading, second: Reading) -> Comparison:
    """Put two runs side by side.

    Args:
        first: one that is not stale.
        second: the same.
    """
    both = (first, second)
    differing = list(_config_differences(first.folder, second.folder))
    unlike = list(_unlike_tasks(first, second, differing))
    figures = [] if unlike else list(_losses(first, second))
    if not unlike and not figures:
        unlike.append("the two runs have no loss of the same name that both logged")
    rows = [
        ("", _heading(first.folder), _heading(second.folder)),
        _row("outcome", *(one.judgement.outcome for one in both)),
        _row("first finding", *(_first_finding(one) for one in both)),
        _row("steps", *(one.diagnosis.evidence.length.steps for one in both)),
        *figures,
        _row("commit", *(_commit(one) for one in both)),
    ]
    codes = [{one.code for one in reading.findings} for reading in both]
    rows += [
        _row(f"only here: {code}", *("x" if code in mine else "" for mine in codes))
        for code in sorted(codes[0] ^ codes[1])
    ]
    # who watched is no part of what was learned
    rows += [_row(*one) for one in differing if not one[0].startswith("callbacks.")]
    return Comparison(tuple(rows), tuple(unlike))


def _unlike_tasks(
    first: Reading, second: Reading, differing: list[tuple[str, Any, Any]]
) -> Iterator[str]:
    """What makes a loss of the one run another figure than that of the other."""
    data = [None if one.origin is None else one.origin.data_hash for one in (first, second)]
    if data[0] != data[1]:
        shown = " against ".join("none" if one is None else one[:10] for one in data)
        yield f"the two runs learned from other recordings: {shown}"
    told = [
        f"{key} {_cell(a)} against {_cell(b)}" for key, a, b in differing if _is_of_task(key, a, b)
    ]
    if told:
        more = f", and {len(told) - 3} keys more" if len(told) > 3 else ""
        yield f"the two runs had other tasks: {'; '.join(told[:3])}{more}"


def _is_of_task(key: str, left: Any, right: Any) -> bool:
    """Whether a key of the configuration that differs says what is learned, and not how.

    Example:
        >>> keys = ("model.init_args.scene.n_snapshots", "data.init_args.batch_size", "experiment")
        >>> [_is_of_task(key, 1, 2) for key in keys]
        [True, False, True]
    """
    parts = key.split(".")
    if parts[0] == "data":
        return parts[-1] not in _AMOUNTS
    if parts[-1] == "phases":
        # losses are logged by the weights of the last phase, all the run long
        return bool(_last_weights(left) != _last_weights(right))
    if key == "trainer.overfit_batches":
        return True  # a few batches, again and again, and validated on themselves
    return key in ("experiment", "model.class_path") or "scene" in parts


def _last_weights(phases: Any) -> Any:
    last = phases[-1] if isinstance(phases, list) and phases else None
    return last.get("weights") if isinstance(last, dict) else None


def _losses(first: Reading, second: Reading) -> Iterator[tuple[str, str, str]]:
    """What both logged under one name, up to the last step that both have come to."""
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    for split in splits:
        named = [{curve.name: curve for curve in one.logged} for one in (first, second)]
        names = [loss_name(curves, split) for curves in named]
        if names[0] is None or names[0] != names[1]:
            continue
        curves = [one[names[0]] for one in named]
        common = min(curve.x[-1] for curve in curves)
        if all(curve.x[0] <= common for curve in curves):
            told = (_up_to(curve, common) for curve in curves)
            yield _row(f"{names[0]} by step {common:.0f}", *told)


def _up_to(curve: Curve, step: float) -> str:
    """From the first value to the last one that is not after a step."""
    place = max(n for n, x in enumerate(curve.x) if x <= step)
    late = "" if curve.x[place] == step else f" (step {curve.x[place]:.0f})"
    began = f"{curve.y[0]:.4g} to " if place else ""
    return f"{began}{curve.y[place]:.4g}{late}"


def _heading(folder: Path) -> str:
    """Its name; that of a preflight with the run that it came before."""
    folder = folder.absolute()
    is_part = folder.name == PREFLIGHT_NAME
    return f"{folder.parent.name}/{folder.name}" if is_part else folder.name


def _first_finding(reading: Reading) -> str:
    return next((finding.code for finding in reading.findings), "none")


def _commit(reading: Reading) -> str:
    origin = reading.origin
    if origin is None or origin.git_commit is None:
        return "unknown"
    return origin.git_commit[:10] + (" with changes" if origin.git_dirty else "")


def _row(name: str, left: Any, right: Any) -> tuple[str, str, str]:
    return name, _cell(left), _cell(right)


def _cell(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _CELL else f"{text[: _CELL - 3]}..."


def _config_differences(first: Path, second: Path) -> Iterator[tuple[str, Any, Any]]:
    trees = [_flat(_config(folder)) for folder in (first, second)]
    for key in sorted(set(trees[0]) | set(trees[1])):
        left, right = (tree.get(key, "-") for tree in trees)
        if left != right:
            yield key, left, right


def _config(folder: Path) -> Any:
    path = folder / CONFIG_NAME
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        pairs = [_flat(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
        return {key: value for pair in pairs for key, value in pair.items()}
    return {path: tree}
