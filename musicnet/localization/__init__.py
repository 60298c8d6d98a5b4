"""A method's name and an observation in, sources with error bars out; see `localize`."""

from musicnet.localization.estimates import Estimates
from musicnet.localization.estimator import METHODS, localize

__all__ = ["METHODS", "Estimates", "localize"]
