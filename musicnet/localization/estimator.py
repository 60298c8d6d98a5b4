"""One call for all methods: `localize`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from torch import Tensor

from musicnet.localization import likelihood_methods, subspace_methods
from musicnet.localization.confidence import assess
from musicnet.localization.estimates import Estimates
from musicnet.localization.likelihood_methods import Counts
from musicnet.localization.neural_methods import NeuralSearch
from musicnet.localization.task import Count, Task, make_task, with_slots
from musicnet.networks.fitting import about_its_origin, fits
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion, Sources


@dataclass(frozen=True)
class Method:
    """A way to find sources.

    Args:
        find: given how many sources each scene has, finds them.
        count: finds out how many there are.
        polish: what is known beyond the likelihood, put into sources and their covariance; None
            knows nothing more.
        is_counted_whole: whether counting finds the sources as well.
        left_to_nomp: which scenes it left to pursuit, once all are found; None leaves none.
    """

    find: Callable[[Task, Counts], Sources]
    count: Callable[[Task], Counts]
    polish: Callable[[Sources, Tensor], tuple[Sources, Tensor]] | None = None
    is_counted_whole: bool = False
    left_to_nomp: Callable[[], Tensor] | None = None


_METHODS = {
    "nomp": Method(
        likelihood_methods.nomp, likelihood_methods.count_by_pursuit, is_counted_whole=True
    ),
    "multistart": Method(likelihood_methods.multistart, likelihood_methods.count_by_pursuit),
    "music": Method(subspace_methods.music, subspace_methods.count_by_eigenvalues),
    "root-music": Method(subspace_methods.rooted, subspace_methods.count_by_eigenvalues),
    "esprit": Method(subspace_methods.rotated, subspace_methods.count_by_eigenvalues),
    "mvdr": Method(subspace_methods.mvdr, subspace_methods.count_by_eigenvalues),
    "bartlett": Method(subspace_methods.bartlett, subspace_methods.count_by_eigenvalues),
}

METHODS = ("auto", "neural", *_METHODS)
"""Names that `localize` knows."""


def localize(
    observation: Observation,
    method: str = "auto",
    n_sources: Count = None,
    *,
    region: SearchRegion,
    most_sources: int | None = None,
    is_noise_known: bool = True,
    pretrained: Pretrained | None = None,
) -> Estimates:
    """Finds the sources of every scene, and how sure they are.

    ==============  ===========================================================================
    ``auto``        neural where a network is given; else multistart for plain arrays, where it
                    costs little, and nomp behind a surface
    ``neural``      a trained network's sources, refined by maximum likelihood, with the
                    calibration that it may hold; before a line, in the one waveform of scenes
                    that the network says are coherent. Scenes in which more sources are counted, or
                    asked for one by one, than it was trained for are nomp's:
                    `Estimates.methods` says whose
    ``nomp``        maximum likelihood from a greedy search; any array, near or far
    ``multistart``  the same from four first sources, the most likely answer wins: slower, surer
    ``music``       MUSIC spectrum, refined off the grid; any array
    ``root-music``  uniform lines in the far field, without a grid
    ``esprit``      uniform lines and rectangles in the far field, without a grid: the fastest
    ``mvdr``        Capon's spectrum, refined off the grid; any array
    ``bartlett``    delay and sum, refined off the grid; any array
    ==============  ===========================================================================

    A scene that is not finite is left unresolved and harms no other; scenes do not depend on what
    else is in their batch.

    Args:
        observation: batch (*channel, *scene), operators (*channel): scenes that share an operator
            share its costs.
        method: one of `METHODS`.
        n_sources: K of all scenes, or of each (any integer tensor of the batch's shape); None has
            them counted: by the evidence of a pursuit (nomp, multistart, and whoever is given
            fewer than two snapshots per element), by MDL on eigenvalues (the others), by the
            posterior under its law of sources, and by pursuit beyond the law's ``n_max``
            (neural).
        region: where sources may be; no estimate lies outside.
        most_sources: most that are looked for where they are counted; None is 6, or as many as
            the sensors can tell apart.
        is_noise_known: False where ``noise_power`` is a rough guess that counting must not rely on.
        pretrained: the network of method neural; `auto` takes it as well.

    Returns:
        Estimates of the same batch, NaN in slots without; the log-likelihood of neural is that of
        its sources before their ranges are settled. Error bars are those of maximum
        likelihood at the estimate (`musicnet.localization.confidence`): honest for nomp and
        multistart, about right for the others where sources are incoherent and well resolved.
        Those of bartlett are always far too small with more than one source, and those of mvdr
        where it hardly resolves them: what the other sources pull is no variance.

    Raises:
        ValueError: an unknown method, one that does not fit the array, or an observation or a
            number of sources that cannot be.
    """
    if method not in METHODS:
        near = get_close_matches(str(method), METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method must be one of {', '.join(METHODS)}: got {method!r}.{hint}")
    with torch.no_grad():
        task = make_task(
            observation, region, n_sources, most_sources, is_noise_known=is_noise_known
        )
        name = _choice(task, pretrained) if method == "auto" else method
        if name == "neural" and pretrained is not None:
            # numbers of single scenes, which must not depend on their batch, find() sorts out
            of_all = n_sources if isinstance(n_sources, int) else None
            misfit = fits(pretrained, observation, region, of_all)
            if misfit is not None:
                raise ValueError(f"the network {pretrained.name!r} must fit: {misfit}.")
            # before anything is computed, so that every step and error bar uses the same steering
            heard = about_its_origin(pretrained, task.observation)
            task = replace(task, observation=pretrained.network.calibrated(heard))
        return _run(task, name, _method(name, task, pretrained))


def _choice(task: Task, pretrained: Pretrained | None) -> str:
    """The method that `auto` stands for."""
    if pretrained is not None:
        return "neural"
    return "multistart" if task.is_plain else "nomp"


def _method(name: str, task: Task, pretrained: Pretrained | None) -> Method:
    if name != "neural":
        return _METHODS[name]
    if pretrained is None:
        raise ValueError("method neural needs a trained network: got pretrained=None.")
    search = NeuralSearch(task, pretrained)
    return Method(
        lambda _, counts: search.find(counts),
        lambda _: search.count(),
        search.polish,
        left_to_nomp=lambda: search.left_to_nomp,
    )


def _find(task: Task, method: Method, counts: Counts) -> Sources:
    """Sources of all scenes, those of one number at a time.

    In the slots of the fullest scene others would be rounded otherwise, and depend on their batch.
    """
    different = sorted({k for k in counts.flatten().tolist() if k > 0})
    is_whole = method.is_counted_whole and task.n_sources is None
    # neural goes by numbers itself
    is_alone = len(counts) == 1
    if is_whole or method.polish is not None or (len(different) < 2 and not is_alone):
        return with_slots(method.find(task, counts), task.most_sources)
    shape = (*counts.shape, task.most_sources)
    parameters = task.observation.noise_power.new_full((*shape, 3), math.nan)
    resolved = torch.zeros(shape, dtype=torch.bool, device=counts.device)
    for k in different:
        some = counts == k
        # scenes of one channel can be taken by themselves; else the others take no part
        part = replace(task.of_scenes(some[0]) if is_alone else task, most_sources=k)
        asked = counts[some][None] if is_alone else counts.where(some, 0)
        found = with_slots(method.find(part, asked), task.most_sources)
        chosen = torch.ones_like(asked, dtype=torch.bool) if is_alone else some
        parameters[some] = found.parameters[chosen].to(parameters.dtype)
        resolved[some] = found.resolved[chosen]
    return Sources(parameters, resolved)


def _run(task: Task, name: str, method: Method) -> Estimates:
    counts = method.count(task) if task.n_sources is None else task.n_sources
    counts = counts.masked_fill(task.spoilt, 0)
    found = _find(task, method, counts)
    resolved = found.resolved & ~task.spoilt[..., None]
    sources = Sources(found.parameters.masked_fill(~resolved[..., None], math.nan), resolved)
    confidence = assess(task.problem, sources)
    covariance = confidence.covariance
    if method.polish is not None:
        sources, covariance = method.polish(sources, covariance)

    def shaped(values: Tensor) -> Tensor:
        return values.reshape((*task.batch_shape, *values.shape[2:]))

    return Estimates(
        sources=Sources(shaped(sources.parameters), shaped(sources.resolved)),
        covariance=shaped(covariance),
        log_likelihood=shaped(confidence.log_likelihood.masked_fill(task.spoilt, math.nan)),
        n_sources=shaped(counts),
        method=name,
        left_to_nomp=None if method.left_to_nomp is None else shaped(method.left_to_nomp()),
    )
