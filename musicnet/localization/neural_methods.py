"""Methods that start from a trained network."""

import torch

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, finish, is_settled
from musicnet.estimation.redetection import redetect
from musicnet.estimation.refinement import refine
from musicnet.localization.likelihood_methods import Counts, count_by_pursuit
from musicnet.localization.task import Task
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.sources import Sources

_STEPS = 5
_STARTS = 3


def count(task: Task, pretrained: Pretrained) -> Counts:
    """How many sources there are."""
    return count_by_pursuit(task)


def neural(task: Task, counts: Counts, pretrained: Pretrained) -> Sources:
    """Peaks of the learned pseudo-spectrum, refined, and re-detected where the residual says so."""
    problem = task.problem
    spectrum = pretrained.network(task.observation)
    found = pretrained.network.decode(spectrum, counts)
    middle = problem.box.mean(0)
    parameters = torch.where(found.resolved[..., None], found.parameters, middle)
    refined = refine(problem, parameters, found.resolved, _STEPS)
    sources = Found(refined.parameters, found.resolved, refined.cost)
    dictionary = Dictionary.over(problem, None)
    sources = redetect(problem, dictionary, sources, ~is_settled(problem, sources), _STARTS)
    return finish(problem, sources).sources(problem)
