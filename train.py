"""The Hydra door: `python train.py experiment=overfit optimizer.init_args.lr=1e-3`.

Composes conf/ into one tree, builds it, fits, and gives the objective to a sweeper.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from musicnet.processors import let_waiting_threads_sleep

let_waiting_threads_sleep()  # before torch is imported, which asks once

from musicnet.cli import (  # noqa: E402
    BAD_INPUT,
    ENDED_BY_SIGNAL,
    ConfigurationError,
    MusicCLI,
    check_switched_off,
    console,
    fault_in_tree,
    fit_as_further_rank,
    launch_environment,
    nearest,
    run_verb,
)

CONF = Path(__file__).parent / "conf"

# What Hydra raises at words that it cannot compose; a group that is given a list is a TypeError.
_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError, TypeError)


def run(argv: Sequence[str]) -> int:
    """Compose and fit, once or once per job of a sweep.

    Args:
        argv: Hydra's overrides and flags.

    Returns:
        The exit code; the worst, that is the highest, of a sweep's jobs.
    """
    exit_codes: list[int] = []

    def job(cfg: DictConfig) -> float | None:
        """One fit; its objective, whatever its verdict."""
        exit_codes.append(BAD_INPUT)  # until it has come to an end
        with launch_environment():
            try:
                _check_nulls(cfg)
                outcome = run_verb(MusicCLI(_resolved(cfg)))
            except ConfigurationError as error:
                _refuse(str(error))
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise  # the sweeper shall not take it for a result
                return None
        exit_codes[-1] = outcome.exit_code
        if outcome.exit_code > ENDED_BY_SIGNAL:
            raise SystemExit(outcome.exit_code)  # past Hydra: it ends a sweep as well
        return outcome.objective

    with console(), _command_line(argv):
        if (exit_code := fit_as_further_rank()) is not None:
            return exit_code
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(job)()
        except ConfigurationError:
            pass  # a job of a sweep, which has said so
        except _COMPOSITION_ERRORS as error:
            if exit_codes:
                raise  # not of the composition: a job has begun
            return _refuse(_composition_fault(argv, error))
    return max(exit_codes, default=0)


def _refuse(reason: str) -> int:
    sys.stderr.write(f"error: {reason}\n")
    return BAD_INPUT


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """The tree as plain data, interpolations replaced."""
    _check_environment(OmegaConf.to_container(cfg, resolve=False), "")
    try:
        tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigurationError(
            f"{error.full_key} must be given: got nothing. Add {error.full_key}=VALUE."
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"{error.full_key}: {_first_line(error)}") from error
    return {str(key): value for key, value in dict(tree).items()}  # type: ignore[arg-type]


def _check_environment(node: Any, path: str) -> None:
    """Refuse values of the environment: the resolved tree is written to config.yaml."""
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node if isinstance(node, list) else [])
    )
    for key, value in items:
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, str) and re.search(r"\$\{\s*oc\.env\s*:", value):
            raise ConfigurationError(
                f"{name} must not come from the environment: got {value!r}. A run writes its "
                "configuration to config.yaml, and secrets have no place there."
            )
        _check_environment(value, name)


def _check_nulls(cfg: DictConfig) -> None:
    """Refuse to switch off a callback that is not there, which Hydra allows after a +."""
    callbacks = cfg.get("callbacks") or {}
    if all(callbacks.values()):
        return
    words = HydraConfig.get().overrides.task
    kept = [word for word in words if not word.lstrip("+").startswith("callbacks.")]
    loader = GlobalHydra.instance().config_loader()
    there = loader.load_configuration("train", kept, RunMode.RUN)
    check_switched_off(callbacks, list(there.callbacks))


def _composition_fault(argv: Sequence[str], error: Exception) -> str:
    """Why Hydra could not compose, in one line."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group} has no {name!r}. {nearest(name, error.options)}"
    # A sweep's choices are composed one by one only: leave them out here.
    words = [word for word in argv if not word.startswith("-") and "=" in word and "," not in word]
    for group, _, choice in (word.partition("=") for word in words if _chooses_group(word)):
        if choice.startswith(("[", "{")):
            known = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
            return f"{group} takes the name of a file of conf/{group}, as in {known}: got {choice}."
    # Hydra knows no nearest name. With its key forced in, the tree itself shows which one is wrong.
    forced = [word if _chooses_group(word) else f"++{word.lstrip('+')}" for word in words]
    try:
        cfg = _compose(forced)
    except _COMPOSITION_ERRORS as cause:
        pairs = zip(reversed(words), reversed(forced), strict=True)
        guilty = next((word for word, force in pairs if not _composes(force)), "this")
        return f"{guilty} cannot be set: {_first_line(cause.__cause__ or cause)}"
    if fault := fault_in_tree(OmegaConf.to_container(cfg, resolve=True)):
        return fault
    hint = " Nothing in conf/ sets it: put a + before it." if "not override" in str(error) else ""
    return _first_line(error) + hint


def _compose(overrides: list[str]) -> DictConfig:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose("train", overrides=overrides)


def _composes(override: str) -> bool:
    try:
        _compose([override])
    except _COMPOSITION_ERRORS:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _chooses_group(override: str) -> bool:
    return override.startswith("~") or (CONF / override.partition("=")[0].lstrip("+")).is_dir()


@contextmanager
def _command_line(argv: Sequence[str]) -> Iterator[None]:
    """Let Hydra, which reads only `sys.argv`, read this; its errors come here as they are."""
    before = sys.argv
    sys.argv = [before[0], *argv]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        yield
    except SystemExit as end:
        # argparse ends with 2 at a flag that it does not know
        raise SystemExit(BAD_INPUT if end.code == 2 else end.code) from end
    finally:
        sys.argv = before


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
