"""Which weights a recording is localised with, and what is said about it."""

from collections.abc import Collection
from dataclasses import dataclass

from musicnet.learning.checkpoint_weights import find_network
from musicnet.localization.estimates import PURSUIT
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


@dataclass(frozen=True)
class Choice:
    """Who answers a recording, as far as weights go.

    Args:
        network: that is used; None uses none.
        lack: why it is none, where one was looked for.
    """

    network: Pretrained | None = None
    lack: str | None = None

    def said(self, answered: Collection[str]) -> str | None:
        """What a user is told.

        Args:
            answered: the methods that have found sources.

        Returns:
            One line, or None where there was no choice.
        """
        if self.network is not None:
            is_calibrated = self.network.network.calibration is not None
            what = ", calibrated for one piece of hardware" * is_calibrated
            most = self.network.scene.sources.n_max
            left = f"; scenes of more than {most} sources are answered by {PURSUIT}"
            return f"weights: {self.network.name}{what}{left * (PURSUIT in answered)}"
        if self.lack is None:
            return None
        who = f"; answered by {' and '.join(sorted(answered))}" if answered else ""
        return f"weights: {self.lack}{who}"


def weights_for(
    recording: ObservationFile,
    method: str,
    named: Pretrained | None,
    word: str | None,
    n_sources: int | None,
) -> Choice:
    """The network that a method uses on a recording.

    Args:
        recording: what was heard.
        method: asked for.
        named: the network that is asked for; None has one chosen by geometry.
        word: that it was named by.
        n_sources: fewest sources of a scene; None where they are to be counted.

    Returns:
        The network; none where the method uses none.

    Raises:
        OSError: a shipped file cannot be read.
        ValueError: it does not fit the recording, or none does that the method needs.
    """
    if method not in METHODS_WITH_WEIGHTS:
        return Choice()
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
        return Choice(named)
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
    if chosen is not None or not shipped():
        return Choice(chosen, "none are shipped")
    is_for_number = n_sources is not None and choose(heard, recording.region) is not None
    what = f"has learned {n_sources} sources" if is_for_number else "fits this recording"
    return Choice(None, f"none of those that ship {what}")
