"""Parts of the network that have a loss term of their own, and whether the two go together."""

from collections.abc import Sequence

from musicnet.learning.losses import LossTerm
from musicnet.learning.phases import Phase, frozen_throughout, weighs
from musicnet.networks.neural_music import NetworkSettings


def check_parts(settings: NetworkSettings, phases: Sequence[Phase]) -> None:
    """Refuses a part that nothing trains, and a loss term of a part that is not there.

    Args:
        settings: which parts there are.
        phases: what is trained; parts that no phase trains are kept as they came.

    Raises:
        ValueError: one without the other.
    """
    parts: dict[LossTerm, tuple[str, str, int, str]] = {
        "trust": ("a trust head", "n_trust", settings.n_trust, "head"),
        "coherence": ("a coherence head", "n_coherence", settings.n_coherence, "head"),
        "calibration": ("a calibration", "calibrates", settings.calibrates, "calibration"),
    }
    for term, (part, name, size, group) in parts.items():
        trains = weighs(phases, term)
        # what is kept as it came needs no loss
        if trains != bool(size) and (trains or group not in frozen_throughout(phases)):
            raise ValueError(
                f"{part} and a loss term for it need each other: got network.{name}={size} with "
                f"the weights {[phase.weights for phase in phases]}. Set both or neither."
            )
