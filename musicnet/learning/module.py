"""MusicNet: the network, its losses and phases, trained through the gate."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from typing_extensions import override

from musicnet.gate.averaging import Averaging
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.parameter_groups import ParameterGroup
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import StepGate
from musicnet.learning.answer_examples import AnswerExample, answer_examples, answer_loss
from musicnet.learning.batches import SceneBatch
from musicnet.learning.coherence_examples import coherence_loss
from musicnet.learning.evaluation import evaluation_metrics
from musicnet.learning.losses import LossTerm, loss_terms
from musicnet.learning.phases import Phase, check_phases, joint, phase_index
from musicnet.learning.trust_examples import TrustExample, trust_examples, trust_loss
from musicnet.networks.head import PseudoSpectrum
from musicnet.networks.judge import Judge
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.scene.scene import Scene
from musicnet.scene.sources import Sources

TRUST_SHARE = 4
"""One channel in so many of a training batch makes examples of trust."""

EvaluationPrefix = Literal["val/", "val/averaged_", "test/"]


class MusicNet(GatedModule):
    """Learns pseudo-spectra whose peaks are the sources.

    ``train/loss`` and ``val/loss`` are the total of the *final* phase, comparable over all epochs;
    what the present phase minimises is ``train/objective``. Recall and errors are those of the
    network's own peaks, the number of sources known, without any refinement.

    Args:
        scene: the physics that the network is built for.
        optimizer: builds the optimiser from named groups.
        network: sizes; None takes the defaults.
        gate: decides the steps; None takes its defaults.
        groups: who trains at which rate; None takes `backbone` at 1x and `head` at 4x.
        schedule: rates over real steps; None takes its defaults.
        phases: what trains when; None trains both loss terms from the start.
        averaging: average of the weights to keep and to evaluate beside them; None keeps none.
        accumulate: batches per attempt.

    Raises:
        ValueError: settings out of range, or that do not fit together.
    """

    def __init__(
        self,
        scene: Scene,
        optimizer: OptimizerCallable,
        network: NetworkSettings | None = None,
        gate: StepGate | None = None,
        groups: list[ParameterGroup] | None = None,
        schedule: Schedule | None = None,
        phases: list[Phase] | None = None,
        averaging: Averaging | None = None,
        accumulate: int = 1,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            gate=gate,
            groups=backbone_and_head() if groups is None else groups,
            schedule=schedule,
            accumulate=accumulate,
            averaging=averaging,
        )
        self._keep_plain_hyperparameters()
        self.phases: Sequence[Phase] = joint() if phases is None else phases
        check_phases(self.phases, [group.name for group in self.parameter_groups])
        self.scene = scene
        self.network = NeuralMusic(scene, NetworkSettings() if network is None else network)
        if _weighs(self.phases, "trust") != (self.network.head.trust is not None):
            raise ValueError(
                "a trust head and a loss term for it need each other: got "
                f"network.n_trust={0 if network is None else network.n_trust} with the weights "
                f"{[phase.weights for phase in self.phases]}. Set both or neither."
            )
        if _weighs(self.phases, "answers") != (self.network.head.judge is not None):
            raise ValueError(
                "a judge and a loss term for it need each other: got "
                f"network.n_judge={0 if network is None else network.n_judge} with the weights "
                f"{[phase.weights for phase in self.phases]}. Set both or neither."
            )
        if _weighs(self.phases, "coherence") != (self.network.head.coherence is not None):
            raise ValueError(
                "a coherence head and a loss term for it need each other: got network.n_coherence="
                f"{0 if network is None else network.n_coherence} with the weights "
                f"{[phase.weights for phase in self.phases]}. Set both or neither."
            )
        prefixes: tuple[EvaluationPrefix, ...] = ("val/", "val/averaged_", "test/")
        self._metrics = {p: evaluation_metrics(far_field=scene.far_field) for p in prefixes}
        # fixed data bring the same batch objects again, and an image has no weights
        self._images: WeakKeyDictionary[SceneBatch, Tensor] = WeakKeyDictionary()

    @property
    def phase_index(self) -> int:
        """Number of the phase that the present epoch belongs to."""
        return phase_index(self.phases, self.current_epoch)

    def forward(self, batch: SceneBatch) -> PseudoSpectrum:
        """Draws the pseudo-spectrum of all scenes of a batch.

        Args:
            batch: observations.

        Returns:
            Logits and offsets, batch (scene,).
        """
        return self.network.spectrum(self._image(batch))

    @override
    def compute_loss(self, batch: SceneBatch, batch_idx: int) -> dict[str, Tensor]:
        """The objective of the present phase, and the total of the final one."""
        terms = self._terms(self(batch), batch)
        return {
            "loss": self.phases[self.phase_index].total(terms),
            "total": self.phases[-1].total(terms),
        }

    @override
    def log_losses(self, losses: dict[str, Tensor]) -> None:
        """Log them; the name ``train/loss`` is for the total that is comparable over epochs."""
        super().log_losses({"objective": losses["loss"], "loss": losses["total"]})

    @override
    def on_after_backward(self) -> None:
        """Take the gradients of frozen groups away, so that neither gate nor optimiser sees them.

        Switching ``requires_grad`` instead would break DDP, which counts on the same parameters
        in every step.
        """
        frozen = self.phases[self.phase_index].frozen
        for group in self.parameter_groups if frozen else ():
            if group.name in frozen:
                for name, parameter in self.named_parameters():
                    if group.takes(name):
                        parameter.grad = None

    @override
    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        """Evaluate the weights, and their average once there is one."""
        self._evaluate(batch, "val/")
        if self.average is not None and self.average.n_averaged > 0:
            with self.averaged_weights():
                self._evaluate(batch, "val/averaged_")

    @override
    def on_validation_epoch_end(self) -> None:
        """Log what was collected."""
        self._log_evaluation("val/")
        self._log_evaluation("val/averaged_")

    @override
    def test_step(self, batch: SceneBatch, batch_idx: int) -> None:
        """Evaluate the weights."""
        self._evaluate(batch, "test/")

    @override
    def on_test_epoch_end(self) -> None:
        """Log what was collected."""
        self._log_evaluation("test/")

    @override
    def predict_step(self, batch: SceneBatch, batch_idx: int) -> Sources:
        """Sources of each scene: as many as are known to be there, else those likelier than not."""
        n_sources = None if batch.truth is None else batch.truth.n_sources
        return self.network.decode(self(batch), n_sources)

    def _image(self, batch: SceneBatch) -> Float[Tensor, "scene v u map"]:
        image = self._images.get(batch)
        if image is None:
            # made under inference_mode by a validation, it would be no use to training
            with torch.inference_mode(mode=False):
                drawn = [self.network.image(one).flatten(0, -4) for one in batch.observations]
                image = torch.cat(drawn)
            self._images[batch] = image
        return image

    def _terms(self, spectrum: PseudoSpectrum, batch: SceneBatch) -> dict[str, Tensor]:
        """All loss terms that some phase weighs."""
        terms = loss_terms(spectrum, _known(batch), self.network.grid)
        if self.network.head.trust is not None and _weighs(self.phases, "trust"):
            terms["trust"] = trust_loss(self.network.head.trust, self._examples(batch))
        if self.network.head.judge is not None and _weighs(self.phases, "answers"):
            examples = list(self._answers(self.network.head.judge, batch))
            terms["answers"] = answer_loss(self.network.head.judge, examples)
        head = self.network.head.coherence
        if head is not None and _weighs(self.phases, "coherence"):
            with torch.autocast(self.device.type, enabled=False):
                terms["coherence"] = coherence_loss(head, batch, self.scene.region)
        return terms

    def _examples(self, batch: SceneBatch) -> list[TrustExample]:
        examples: list[TrustExample] = []
        truth, first = _known(batch), 0
        law, region = self.scene.sources, self.scene.region
        with torch.autocast(self.device.type, enabled=False):
            for heard in batch.observations:
                n_channels, n_scenes = heard.noise_power.shape
                # they cost more than all the rest, and few teach enough
                n_used = -(-n_channels // TRUST_SHARE) if self.training else n_channels
                scenes = slice(first, first + n_used * n_scenes)
                of_these = Sources(
                    truth.parameters[scenes].reshape(n_used, n_scenes, -1, 3),
                    truth.resolved[scenes].reshape(n_used, n_scenes, -1),
                )
                examples += trust_examples(heard.channels(n_used), of_these, law, region)
                first += n_channels * n_scenes
        return examples

    def _answers(self, judge: Judge, batch: SceneBatch) -> Iterator[AnswerExample]:
        truth, first = _known(batch), 0
        with torch.autocast(self.device.type, enabled=False):
            for heard in batch.observations:
                shape = heard.noise_power.shape
                scenes = slice(first, first + shape.numel())
                of_these = Sources(
                    truth.parameters[scenes].reshape(*shape, -1, 3),
                    truth.resolved[scenes].reshape(*shape, -1),
                )
                yield from answer_examples(judge, heard, of_these, self.scene.region)
                first += shape.numel()

    def _evaluate(self, batch: SceneBatch, prefix: EvaluationPrefix) -> None:
        truth = _known(batch)
        spectrum = self(batch)
        terms = self._terms(spectrum, batch)
        losses = {"loss": self.phases[-1].total(terms), **terms}
        self.log_dict(
            {f"{prefix}{name}": value for name, value in losses.items()},
            batch_size=batch.n_scenes,
            sync_dist=True,
        )
        metrics = self._metrics[prefix].to(self.device)
        metrics.update(self.network.decode(spectrum, truth.n_sources), truth)

    def _log_evaluation(self, prefix: EvaluationPrefix) -> None:
        metrics = self._metrics[prefix]
        if any(metric.update_called for metric in metrics.values()):
            values = metrics.compute()
            self.log_dict({f"{prefix}{name}": value for name, value in values.items()})
            metrics.reset()

    def _keep_plain_hyperparameters(self) -> None:
        """Keeps what the command line gave, which is plain data; objects would spoil a checkpoint.

        A module built by hand has no plain arguments: its checkpoint is loaded by giving the
        scene, the optimiser and whatever else differs from the defaults again.
        """
        self.save_hyperparameters(logger=False)
        for name in [name for name, value in self.hparams.items() if not _is_plain(value)]:
            del self.hparams[name]


def backbone_and_head() -> list[ParameterGroup]:
    """The two parts of the network; the head at four times the rate."""
    return [
        ParameterGroup("backbone", ["network.backbone"]),
        ParameterGroup("head", ["network.head"], rate_scale=4.0),
    ]


def _weighs(phases: Sequence[Phase], term: LossTerm) -> bool:
    return any(phase.weights.get(term, 0.0) > 0 for phase in phases)


def _known(batch: SceneBatch) -> Sources:
    if batch.truth is None:
        raise ValueError(
            "training and evaluation need the true sources: got a batch without. Use a recording "
            "with truth_xyz, or predict."
        )
    return batch.truth


def _is_plain(value: Any) -> bool:
    """Whether a value is made of JSON types."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
