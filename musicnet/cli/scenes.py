"""The scene of an experiment, composed as `train.py` composes it, with nothing else built."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musicnet.cli.refusals import ConfigurationError, nearest, one_line
from musicnet.records.plain_data import from_plain
from musicnet.scene.scene import Scene

CONF = Path(__file__).parents[2] / "conf"
"""The folder of the numbers, beside the package."""


def experiment_scene(name: str) -> Scene:
    """The physics of an experiment.

    Args:
        name: of a file in ``conf/experiment``.

    Returns:
        Its scene.

    Raises:
        ConfigurationError: there is no such experiment, or no folder of experiments.
    """
    known = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
    if not known:
        raise ConfigurationError(
            f"experiments are configured in {CONF}, which is not there. Give --weights instead."
        )
    if name not in known:
        raise ConfigurationError(f"no experiment is called {name!r}. {nearest(name, known)}")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("train", [f"experiment={name}"])
        tree = OmegaConf.to_container(composed.scene, resolve=True)
        return from_plain(Scene, tree, "scene", fill_defaults=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigurationError(f"experiment {name}: {one_line(error)}") from error
    finally:
        GlobalHydra.instance().clear()
