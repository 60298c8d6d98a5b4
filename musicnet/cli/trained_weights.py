"""Does a checkpoint fit the model that was asked for? A ConfigurationError says why not."""

from pathlib import Path
from typing import Any

from musicnet.cli.refusals import ConfigurationError
from musicnet.gate.checkpoint_files import DamagedCheckpointError, read_checkpoint_file


def fitting_checkpoint(
    path: Path, model: dict[str, Any], *, resumes: bool = False
) -> dict[str, Any]:
    """Read a checkpoint; refuse another model's, and, to be resumed from, weights alone."""
    if not path.is_file():
        raise ConfigurationError(
            f"ckpt_path must be a local file: got {path}. It is not there, or not a file."
        )
    try:
        checkpoint = read_checkpoint_file(path)
        saved = dict(checkpoint["hyper_parameters"])
    except (OSError, DamagedCheckpointError, KeyError, TypeError) as error:
        why = f"without {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigurationError(
            f"ckpt_path must be a whole checkpoint of this program: got {path} ({why.rstrip('.')})."
        ) from error
    saved.pop("_instantiator", None)
    wanted = {"_class_path": model["class_path"], **model["init_args"]}
    if differing := differences(saved, wanted):
        raise ConfigurationError(
            f"ckpt_path must fit the model: {path} was trained with other {', '.join(differing)}."
            " Use the config.yaml of its own run."
        )
    if resumes and not checkpoint.get("optimizer_states"):
        raise ConfigurationError(
            f"ckpt_path cannot be resumed from: {path} holds weights and no optimiser state. Take "
            "the last.ckpt of a run, or begin with model.init_args.start."
        )
    return checkpoint


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Keys at which two plain trees differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = {*one, *other}
        found = [
            differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
            for key in sorted(keys)
        ]
        return [key for keys in found for key in keys]
    return [] if one == other else [path]
