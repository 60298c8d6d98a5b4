"""MusicNet: the network, its losses and phases, trained through the gate."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Complex, Float
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from typing_extensions import override

from musicnet.gate.averaging import Averaging
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.parameter_groups import ParameterGroup
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import StepGate
from musicnet.learning.batches import SceneBatch, with_truth
from musicnet.learning.calibration_loss import calibration_loss
from musicnet.learning.checkpoint_weights import find_network
from musicnet.learning.coherence_examples import coherence_loss
from musicnet.learning.evaluation import evaluation_metrics
from musicnet.learning.losses import SPECTRUM_TERMS, loss_terms
from musicnet.learning.parts import check_parts
from musicnet.learning.phases import (
    Phase,
    check_phases,
    frozen_throughout,
    joint,
    phase_index,
    weighs,
)
from musicnet.learning.picture import spectrum_picture
from musicnet.learning.trust_examples import TrustExample, trust_examples, trust_loss
from musicnet.networks.head import PseudoSpectrum
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import begin_with
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation
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
        groups: who trains at which rate; None takes `backbone` at 1x and `head` at 4x, and
            `calibration` at 1x where there is one.
        schedule: rates over real steps; None takes its defaults.
        phases: what trains when; None trains both loss terms from the start.
        averaging: average of the weights to keep and to evaluate beside them; None keeps none.
        accumulate: batches per attempt.
        start: trained weights to begin with: the name of shipped ones, a file, or a checkpoint;
            None begins anew.
        place_error_m: rms error, along each axis, of the places that a calibration takes for true.

    Raises:
        ValueError: settings out of range, or that do not fit together, or weights to begin with
            that cannot be read.
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
        start: str | None = None,
        place_error_m: float = 0.0,
    ) -> None:
        settings = NetworkSettings() if network is None else network
        super().__init__(
            optimizer=optimizer,
            gate=gate,
            groups=_default_groups(settings) if groups is None else groups,
            schedule=schedule,
            accumulate=accumulate,
            averaging=averaging,
        )
        self._keep_plain_hyperparameters()
        self.phases: Sequence[Phase] = joint() if phases is None else phases
        check_phases(self.phases, [group.name for group in self.parameter_groups])
        self.scene = scene
        self.network = NeuralMusic(scene, settings)
        check_parts(settings, self.phases)
        self.place_error_m = _checked_error(place_error_m, scene)
        if start is not None:
            _begin(self.network, scene, start)
        self._freeze_for_good()
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
        """The terms, the objective of the present phase, and the total of the final one."""
        draws = any(weighs(self.phases, term) for term in SPECTRUM_TERMS)
        terms = self._terms(self(batch) if draws else None, batch)
        return {
            **terms,
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

    def batch_inputs(self, batch: SceneBatch) -> Complex[Tensor, "scene value"]:
        """What tells the scenes of a batch apart: a few values of each, for who compares them."""
        heard = [one.y.flatten(0, 1).flatten(1) for one in batch.observations]
        n_values = min(64, *(one.shape[1] for one in heard))
        return torch.cat([one[:, :n_values] for one in heard])

    def deal_labels(self, batch: SceneBatch, shift: int) -> SceneBatch:
        """The batch with the sources of every scene at another: for who asks what labels matter."""
        truth = _known(batch)
        dealt = Sources(truth.parameters.roll(shift, 0), truth.resolved.roll(shift, 0))
        return replace(batch, truth=dealt)

    def report_picture(self) -> tuple[bytes, str, str] | None:
        """What the network makes of one scene, for the report of the run."""
        return spectrum_picture(self.network, self.scene)

    def _image(self, batch: SceneBatch) -> Float[Tensor, "scene v u map"]:
        image = self._images.get(batch)
        if image is None:
            # made under inference_mode by a validation, it would be no use to training
            with torch.inference_mode(mode=False):
                drawn = [self.network.image(one).flatten(0, -4) for one in self._heard(batch)]
                image = torch.cat(drawn)
            if self.network.calibration is None:
                self._images[batch] = image
        return image

    def _heard(self, batch: SceneBatch) -> list[Observation]:
        """The observations of a batch as they came about, as far as is known by now."""
        with torch.no_grad():
            return [self.network.calibrated(one) for one in batch.observations]

    def _terms(self, spectrum: PseudoSpectrum | None, batch: SceneBatch) -> dict[str, Tensor]:
        """All loss terms that some phase weighs, and those of a spectrum that was drawn."""
        terms: dict[str, Tensor] = {}
        if spectrum is not None:
            terms |= loss_terms(spectrum, _known(batch), self.network.grid)
        if self.network.calibration is not None and weighs(self.phases, "calibration"):
            terms["calibration"] = self._misfit(batch)
        if self.network.head.trust is not None and weighs(self.phases, "trust"):
            terms["trust"] = trust_loss(self.network.head.trust, self._examples(batch))
        head = self.network.head.coherence
        if head is not None and weighs(self.phases, "coherence"):
            with torch.autocast(self.device.type, enabled=False):
                terms["coherence"] = coherence_loss(head, batch, self.scene.region)
        return terms

    def _misfit(self, batch: SceneBatch) -> Float[Tensor, ""]:
        with torch.autocast(self.device.type, enabled=False):
            heard = [self.network.calibrated(one) for one in batch.observations]
            pairs = with_truth(heard, _known(batch))
            return calibration_loss(pairs, self.scene.region, self.place_error_m)

    def _examples(self, batch: SceneBatch) -> list[TrustExample]:
        examples: list[TrustExample] = []
        law, region = self.scene.sources, self.scene.region
        is_data = self.scene.symbols == "data"
        with torch.autocast(self.device.type, enabled=False):
            for heard, truth in with_truth(self._heard(batch), _known(batch)):
                n_channels = len(heard.noise_power)
                # they cost more than all the rest, and few teach enough
                n_used = -(-n_channels // TRUST_SHARE) if self.training else n_channels
                some = Sources(truth.parameters[:n_used], truth.resolved[:n_used])
                heard_of = heard.channels(n_used)
                examples += trust_examples(heard_of, some, law, region, is_data=is_data)
        return examples

    def _freeze_for_good(self) -> None:
        """Ask no gradient of what no phase trains; the same parameters in every step suit DDP."""
        frozen = frozen_throughout(self.phases)
        for group in self.parameter_groups:
            for name, parameter in self.named_parameters():
                if group.name in frozen and group.takes(name):
                    parameter.requires_grad = False

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
            # all ranks have the same numbers already, and Lightning asks for this all the same
            named = {f"{prefix}{name}": value for name, value in values.items()}
            self.log_dict(named, sync_dist=True)
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


def _default_groups(settings: NetworkSettings) -> list[ParameterGroup]:
    groups = backbone_and_head()
    if settings.calibrates:
        groups.append(ParameterGroup("calibration", ["network.calibration"]))
    return groups


def _checked_error(place_error_m: float, scene: Scene) -> float:
    if not (math.isfinite(place_error_m) and place_error_m >= 0.0):
        raise ValueError(f"place_error_m must be finite and >= 0: got {place_error_m}.")
    if place_error_m > 0.0 and scene.far_field:
        raise ValueError(
            "place_error_m is about places, which sources in the far field have none of: got "
            f"{place_error_m}. Set place_error_m=0."
        )
    return place_error_m


def _begin(network: NeuralMusic, scene: Scene, start: str) -> None:
    try:
        begin_with(network, scene, find_network(start))
    except (OSError, ValueError) as error:
        raise ValueError(f"start: {error}") from error


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
