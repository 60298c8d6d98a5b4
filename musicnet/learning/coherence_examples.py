"""What the coherence head learns from: clues of a training batch, and which scenes are coherent."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musicnet.estimation.covariance_clues import CovarianceClues
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import Problem, compress
from musicnet.estimation.subspace_fitting import powers_in_span
from musicnet.learning.batches import SceneBatch
from musicnet.networks.coherence import CoherenceHead
from musicnet.scene.sources import SearchRegion


def coherence_loss(
    head: CoherenceHead, batch: SceneBatch, region: SearchRegion
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the scenes with several sources.

    Recordings do not say which of their scenes are coherent: there, what the snapshots hold of the
    true directions has to.

    Args:
        head: to train.
        batch: of a plain array; its sources are known.
        region: where they may be.

    Returns:
        Nats per scene; 0 of a batch without such scenes.
    """
    total, n_scenes, first = torch.zeros(()), 0, 0
    truth = batch.truth
    if truth is None:
        raise ValueError(
            "coherence is learned from scenes whose sources are known: got a batch without."
        )
    for heard in batch.observations:
        problem = compress(heard, region)
        some = slice(first, first + heard.noise_power.numel())
        first = some.stop
        resolved = problem.flatten(truth.resolved[some].reshape(*heard.noise_power.shape, -1))
        counts = resolved.sum(-1)
        if batch.is_coherent is not None:
            wanted = batch.is_coherent[some].reshape(counts.shape)
        else:
            parameters = truth.parameters[some].reshape(*heard.noise_power.shape, -1, 3)
            wanted = inferred(problem, problem.flatten(parameters), resolved)
        log_odds = head(CovarianceClues.of(problem), problem.n_snapshots, counts)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            log_odds, wanted.to(log_odds), reduction="none"
        )
        several = counts > 1
        total = total.to(loss) + (loss * several).sum()
        n_scenes += int(several.sum())
    return total / max(n_scenes, 1)


def inferred(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    resolved: Bool[Tensor, "channel scene source"],
) -> Bool[Tensor, "channel scene"]:
    """Whether snapshots hold more than one waveform from the directions of the sources.

    Args:
        problem: snapshots of a plain array, of known noise power.
        parameters: of the true sources; anything in empty slots.
        resolved: slots that hold a source.

    Returns:
        True where the second strongest dimension between the sources is no more than noise makes.
    """
    places = parameters.nan_to_num().to(problem.y.real.dtype)
    explained = explain(problem, places, resolved)
    powers = powers_in_span(problem, explained)
    if powers.shape[-1] < 2:
        return torch.ones_like(resolved[..., 0])
    # what noise alone makes of the largest of K eigenvalues
    most = (1.0 + (resolved.sum(-1) / problem.n_snapshots).sqrt()).square()
    return powers[..., 1] <= most
