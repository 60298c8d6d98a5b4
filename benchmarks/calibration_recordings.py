"""Calibration recordings of simulated hardware, as a field user would make them."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from musicnet.coordinates import angles, direction_cosines, from_xyz
from musicnet.recordings.observation_files import ObservationFile, write_observations
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_known_blocks
from musicnet.scene.sources import SourceLaw, Sources

SCENES_PER_CHANNEL = 32
_SEED = 8_410


@dataclass(frozen=True)
class Campaign:
    """How a calibration was recorded.

    Args:
        n_scenes: recorded.
        has_one_source: a single beacon at 20 dB that is carried around; else scenes of the task,
            with several sources at any signal-to-noise ratio.
        survey_m: rms error of the places that were written down, along each axis; metres.
        is_told: whether training is told of that error.
    """

    n_scenes: int
    has_one_source: bool = False
    survey_m: float = 0.0
    is_told: bool = False

    @property
    def name(self) -> str:
        """Of the method that was calibrated so."""
        kind = "beacon" if self.has_one_source else "task"
        survey = f", {100 * self.survey_m:g} cm" if self.survey_m else ""
        return f"neural, {self.n_scenes} {kind}{survey}{', told' * self.is_told}"


def record(campaign: Campaign, scene: Scene, path: Path) -> None:
    """Writes the recording of a campaign.

    Args:
        campaign: how it is made.
        scene: the task, with the errors of the hardware.
        path: where it goes.
    """
    law = scene.sources
    if campaign.has_one_source:
        law = replace(law, n_min=1, n_max=1, snr_db=(20.0, 20.0), count_weights=None)
    n_channels = -(-campaign.n_scenes // SCENES_PER_CHANNEL)
    per_channel = -(-campaign.n_scenes // n_channels)
    drawn = draw_known_blocks(
        replace(scene, sources=law), range(n_channels), per_channel, "cpu", _SEED, "campaign", 0
    )
    heard, some = drawn.observation, slice(campaign.n_scenes)
    truth = Sources(
        drawn.truth.parameters.flatten(0, 1)[some], drawn.truth.resolved.flatten(0, 1)[some]
    )
    index = torch.arange(n_channels).repeat_interleave(per_channel)
    write_observations(
        path,
        ObservationFile(
            y=heard.y.flatten(0, 1)[some],
            operator=heard.operator,
            operator_index=index[some],
            noise_power=heard.noise_power.flatten()[some],
            positions=heard.positions,
            wavelength=heard.wavelength,
            field="near",
            azimuth_deg=law.azimuth_deg,
            elevation_deg=law.elevation_deg,
            range_m=law.range_m or (0.0, 0.0),
            truth=_surveyed(truth, campaign.survey_m, law),
            sha256="",
        ),
    )


def _surveyed(truth: Sources, survey_m: float, law: SourceLaw) -> Sources:
    """Places as they were written down: inside the sector, where they are known to be."""
    if survey_m == 0.0:
        return truth
    generator = torch.Generator().manual_seed(_SEED)
    points = truth.xyz.double()
    noisy = from_xyz(points + survey_m * torch.randn(points.shape, generator=generator))
    azimuth, elevation = (
        angle.clamp(*(math.radians(0.999 * bound) for bound in bounds))
        for angle, bounds in zip(angles(noisy), (law.azimuth_deg, law.elevation_deg), strict=True)
    )
    u, v = direction_cosines(azimuth, elevation)
    nearest, farthest = law.range_m or (0.0, math.inf)
    rho = noisy[..., 2].clamp(1.001 / farthest, 0.999 / nearest)
    return Sources(torch.stack((u, v, rho), dim=-1).float(), truth.resolved)
