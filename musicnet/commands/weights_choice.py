"""Which weights a recording is localised with, and what is said about it."""

from musicnet.learning.checkpoint_weights import find_network
from musicnet.networks.fitting import choose, fits
from musicnet.networks.pretrained import Pretrained, load_shipped, shipped
from musicnet.recordings.observation_files import ObservationFile
from musicnet.scene.snapshots import Observation

METHODS_WITH_WEIGHTS = ("auto", "neural")


def named_weights(method: str, word: str | None) -> Pretrained | None:
    """The network that is asked for.

    Args:
        method: asked for.
        word: name or file of the weights, or a run's checkpoint; None leaves the choice.

    Returns:
        The network; None where none is named.

    Raises:
        OSError: the weights cannot be read.
        ValueError: they are none, or the method takes none.
    """
    if word is None:
        return None
    if method not in METHODS_WITH_WEIGHTS:
        raise ValueError(
            f"--weights is for the methods {' and '.join(METHODS_WITH_WEIGHTS)}: got --method "
            f"{method}. Leave one of the two out."
        )
    return find_network(word)


def weights_for(
    recording: ObservationFile,
    method: str,
    named: Pretrained | None,
    word: str | None,
    n_sources: int | None,
) -> Pretrained | None:
    """The network that a method uses on a recording.

    Args:
        recording: what was heard.
        method: asked for.
        named: the network that is asked for; None has one chosen by geometry.
        word: that it was named by.
        n_sources: most sources of a scene; None where they are to be counted.

    Returns:
        The network; None where the method uses none.

    Raises:
        OSError: a shipped file cannot be read.
        ValueError: it does not fit the recording, or none does that the method needs.
    """
    if method not in METHODS_WITH_WEIGHTS:
        return None
    heard = Observation(
        y=recording.y,
        operator=recording.operator,
        noise_power=recording.noise_power,
        positions=recording.positions,
        wavelength=recording.wavelength,
    )
    if named is not None:
        if (reason := fits(named, heard, recording.region, n_sources)) is not None:
            raise ValueError(f"--weights {word} must fit the recording: {reason}.")
        return named
    chosen = choose(heard, recording.region, n_sources)
    if chosen is None and method == "neural":
        ships = [load_shipped(path) for path in shipped().values()]
        reasons = [
            f"{one.name}: {fits(one, heard, recording.region, n_sources) or 'only by name'}"
            for one in ships
        ]
        raise ValueError(
            "method neural needs weights that fit the recording: got none among those that ship "
            f"({'; '.join(reasons) or 'there are none'}). Give others by --weights, or use "
            "--method auto."
        )
    return chosen


def choice_of(method: str, pretrained: Pretrained | None) -> str | None:
    """What a user is told about the choice.

    Args:
        method: asked for.
        pretrained: what `weights_for` gave.

    Returns:
        One line, or None where there was no choice.
    """
    if method not in METHODS_WITH_WEIGHTS:
        return None
    if pretrained is not None:
        what = ", calibrated for one piece of hardware" * (
            pretrained.network.calibration is not None
        )
        return f"weights: {pretrained.name}{what}"
    none = "none of those that ship fits this recording" if shipped() else "none are shipped"
    return f"weights: {none}; pursuit is used instead"
