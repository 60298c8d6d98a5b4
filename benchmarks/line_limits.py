"""What the neural method has to keep on lines of sensors, beside the methods of the same run."""

from localizer_limits import Limit
from trials import Trial

_ALL = (1, 2, 3)
_EVERY_DB = (-5.0, 0.0, 5.0, 10.0, 20.0)
_NOISY = (-5.0, 0.0)

EVERYWHERE = (
    Limit(1, _ALL, _EVERY_DB, "rmse_over_nomp", 1.001, beyond_interval=True),
    # both end at the same maximum, up to single precision
    Limit(2, _ALL, _EVERY_DB, "median_over_nomp", 1.001, beyond_interval=True),
    Limit(3, _ALL, _EVERY_DB, "outliers_less_nomp", 0.0, beyond_interval=True),
    Limit(5, _ALL, _EVERY_DB, "cpu_over_nomp", 1.0),
)
"""Of every cell: never worse than pursuit with maximum likelihood beyond noise, at its time."""

COHERENT = (Limit(4, (2, 3), _NOISY, "rmse_over_nomp", 1.0, is_strict=True),)
"""Of cells of coherent sources in strong noise: better."""


def limits_of(trial: Trial) -> tuple[Limit, ...]:
    """The limits of one cell.

    Args:
        trial: the kind of its scenes.

    Returns:
        None in the near field.
    """
    if trial.range_m is not None:
        return ()
    return EVERYWHERE + (COHERENT if trial.symbols == "coherent" else ())
