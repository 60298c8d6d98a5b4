"""Small scenes, small networks, and trainers that say nothing."""

import lightning.pytorch as pl
import pytest
import torch

from musicnet.learning.module import MusicNet
from musicnet.networks.neural_music import NetworkSettings
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface


@pytest.fixture
def surface_scene():
    return Scene(ArrayGeometry(4, 4), SourceLaw(n_max=2), surface=Surface(n_antennas=4, n_codes=6))


@pytest.fixture
def line_scene():
    law = SourceLaw(n_max=2, elevation_deg=(0.0, 0.0), range_m=None)
    return Scene(ArrayGeometry(8), law, n_snapshots=20, symbols="data")


@pytest.fixture
def make_module():
    def make(scene, n_trust=0, **options):
        torch.manual_seed(0)
        settings = NetworkSettings(
            n_channels=8, dilations=(1,), n_v=5, n_u=11, n_rho=3, n_trust=n_trust
        )
        return MusicNet(
            scene, lambda groups: torch.optim.AdamW(groups, lr=2e-3), settings, **options
        )

    return make


@pytest.fixture
def make_trainer(tmp_path):
    def make(**options):
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return pl.Trainer(**(quiet | options))

    return make
