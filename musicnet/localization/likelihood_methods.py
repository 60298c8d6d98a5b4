"""Methods that search for the most likely sources: pursuit, and pursuit from several starts."""

from jaxtyping import Int
from torch import Tensor

from musicnet.estimation import pursuit
from musicnet.estimation.subspace_fitting import refit
from musicnet.localization.task import Task
from musicnet.scene.sources import Sources

Counts = Int[Tensor, "channel scene"]


def count_by_pursuit(task: Task) -> Counts:
    """How many sources have the most evidence, coherent or not."""
    return task.pursued.sources(task.problem).n_sources


def nomp(task: Task, counts: Counts) -> Sources:
    """Newtonised orthogonal matching pursuit, with re-detection where something is left."""
    if task.n_sources is None:  # counting has found them already
        return task.pursued.sources(task.problem)
    return pursuit.nomp(task.problem, grid=None, n_sources=counts).sources(task.problem)


def multistart(task: Task, counts: Counts) -> Sources:
    """The same with four starts for every source; coherent ones fit the signal subspace."""
    found = pursuit.multistart(task.problem, grid=None, n_sources=counts)
    if task.is_plain and task.n_snapshots > 1:
        found = refit(task.problem, grid=None, found=found)
    return found.sources(task.problem)
