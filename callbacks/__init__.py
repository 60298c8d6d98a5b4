"""Lightning callbacks that show what a training step did, each usable alone in any project.

They only observe: with and without them the weights are the same to the last bit. Modules that
step through a `StepGate` tell them of every attempt by `on_step_gate`; under automatic
optimisation they listen to Lightning's own hooks.
"""

from callbacks.gradient_norm import GradientNorm
from callbacks.learning_rates import LearningRates
from callbacks.overfit_sanity import OverfitSanity
from callbacks.parameter_delta import ParameterDelta
from callbacks.run_doctor import RunDoctor
from callbacks.run_log import RunLog

__all__ = [
    "GradientNorm",
    "LearningRates",
    "OverfitSanity",
    "ParameterDelta",
    "RunDoctor",
    "RunLog",
]
