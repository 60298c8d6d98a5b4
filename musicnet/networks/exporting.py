"""Trained networks for programs that know nothing of this one.

Two parts: the *pipeline*, snapshots to pseudo-spectrum, as a torch program, eigenvectors and all;
and the *network* alone, image to pseudo-spectrum, as ONNX, which has no eigenvectors of complex
matrices. The description (scene, sizes, card) travels inside.
"""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from musicnet.networks.neural_music import NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.records.plain_data import to_plain
from musicnet.scene.snapshots import Observation, block_generator, draw_block

DESCRIPTION = "musicnet.json"
"""Name of the description inside a torch program; in ONNX the key of its metadata."""

TOLERANCE = 1e-4
"""Most that an exported program's numbers may be off."""

_CHECKED = (2, 5)  # numbers of scenes, neither of them the one of the export
_EXAMPLE = 3


class Pipeline(nn.Module):
    """Snapshots to pseudo-spectrum, with tensors in and out.

    Args:
        pretrained: the network and its scene.
    """

    positions: Tensor

    def __init__(self, pretrained: Pretrained) -> None:
        super().__init__()
        self.network = pretrained.network
        self.register_buffer("positions", pretrained.scene.positions().clone())
        self.wavelength = pretrained.scene.wavelength_m

    def forward(self, y: Tensor, operator: Tensor, noise_power: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (scene, v, u, rho) and offsets in cells (scene, v, u, rho, 3).

        Args:
            y: complex64 (scene, block, row).
            operator: complex64 (block or 1, row, element).
            noise_power: (scene,).
        """
        heard = Observation(y, operator, noise_power, self.positions, self.wavelength)
        spectrum = self.network(heard)
        return spectrum.logits, spectrum.offsets


class ImageNetwork(nn.Module):
    """Image to pseudo-spectrum, with tensors in and out.

    Args:
        network: trained.
    """

    def __init__(self, network: NeuralMusic) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (scene, v, u, rho) and offsets in cells (scene, v, u, rho, 3).

        Args:
            image: (scene, v, u, map).
        """
        spectrum = self.network.spectrum(image)
        return spectrum.logits, spectrum.offsets


def description_of(pretrained: Pretrained) -> str:
    """Scene, sizes, card and origin as JSON."""
    tree = {
        "format": "musicnet.export/1",
        "name": pretrained.name,
        "sha256": pretrained.sha256,
        "scene": to_plain(pretrained.scene),
        "network": to_plain(pretrained.settings) if pretrained.settings else None,
        "card": pretrained.card,
    }
    return json.dumps(tree, allow_nan=False)


def to_torch_export(pretrained: Pretrained) -> bytes:
    """The pipeline as a torch program for any number of scenes.

    Args:
        pretrained: the network.

    Returns:
        A ``.pt2`` file, checked against the pipeline.

    Raises:
        ValueError: the program's numbers are off.
    """
    pipeline = Pipeline(pretrained).eval()
    scenes = torch.export.Dim("scene", min=1)
    shapes: dict[str, Any] = {"y": {0: scenes}, "operator": None, "noise_power": {0: scenes}}
    file = io.BytesIO()
    with _quiet(), torch.no_grad():
        program = torch.export.export(pipeline, _heard(pretrained, _EXAMPLE), dynamic_shapes=shapes)
        torch.export.save(program, file, extra_files={DESCRIPTION: description_of(pretrained)})
        file.seek(0)
        again = torch.export.load(file).module()
        for n_scenes in _CHECKED:
            inputs = _heard(pretrained, n_scenes)
            _compare("the torch program", pipeline(*inputs), again(*inputs))
    return file.getvalue()


def to_onnx(pretrained: Pretrained) -> bytes:
    """The network alone as ONNX for any number of scenes.

    Args:
        pretrained: the network.

    Returns:
        An ``.onnx`` file, checked by onnxruntime.

    Raises:
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: the model's numbers are off.
    """
    _check_installed()
    import onnxruntime

    network = ImageNetwork(pretrained.network).eval()
    scenes = torch.export.Dim("scene", min=1)
    with _quiet(), torch.no_grad():
        exported = torch.onnx.export(
            network,
            (_image(pretrained, _EXAMPLE),),
            dynamo=True,
            dynamic_shapes={"image": {0: scenes}},
            input_names=["image"],
            output_names=["logits", "offsets"],
            verbose=False,
        )
        if exported is None:
            raise ValueError("the network must be expressible as ONNX: got nothing.")
        model = exported.model_proto
        entry = model.metadata_props.add()
        entry.key, entry.value = DESCRIPTION, description_of(pretrained)
        content: bytes = model.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for n_scenes in _CHECKED:
            image = _image(pretrained, n_scenes)
            found = session.run(["logits", "offsets"], {"image": image.numpy()})
            _compare("the ONNX model", network(image), tuple(map(torch.from_numpy, found)))
    return content


def _heard(pretrained: Pretrained, n_scenes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scenes such as the network was trained for."""
    drawn, _ = draw_block(
        pretrained.scene, block_generator(0, "export", 0, n_scenes), n_scenes=n_scenes
    )
    noise_power = drawn.noise_power.expand(n_scenes).contiguous()
    return drawn.y.resolve_conj(), drawn.operator.resolve_conj(), noise_power


def _image(pretrained: Pretrained, n_scenes: int) -> Tensor:
    y, operator, noise_power = _heard(pretrained, n_scenes)
    pipeline = Pipeline(pretrained)
    heard = Observation(y, operator, noise_power, pipeline.positions, pipeline.wavelength)
    image: Tensor = pretrained.network.image(heard)
    return image


def _compare(what: str, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    worst = max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
    if not worst <= TOLERANCE:
        raise ValueError(f"{what} must give the network's numbers to {TOLERANCE:g}: got {worst:g}.")


def _check_installed() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"ONNX needs {name}, which is not installed. Run pip install 'musicnet[export]'."
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk of their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
