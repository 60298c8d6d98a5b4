"""Several sources from what an array or a surface hears, and training that cannot fail silently.

In five lines, without a trainer::

    import musicnet

    recording = musicnet.read("tests/data/ula_far_24.npz")
    found = musicnet.localize(recording)
    print(found.sources.xyz, found.std_xyz, found.n_sources)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from musicnet.localization.recorded import localize_all as localize
    from musicnet.localization.recorded import read_all as read
    from musicnet.scene.snapshots import Observation
    from musicnet.scene.sources import SearchRegion

__all__ = ["Observation", "SearchRegion", "localize", "read"]

_PLACES = {
    "localize": ("musicnet.localization.recorded", "localize_all"),
    "read": ("musicnet.localization.recorded", "read_all"),
    "Observation": ("musicnet.scene.snapshots", "Observation"),
    "SearchRegion": ("musicnet.scene.sources", "SearchRegion"),
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: no room pays for another that it does not use."""
    if name not in _PLACES:
        raise AttributeError(f"module 'musicnet' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
