"""`python -m musicnet export --weights NAME|FILE --to safetensors|torch-export|onnx FILE`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from musicnet.commands.parsing import BAD_INPUT, OneLineParser, check_file_target, told
from musicnet.networks.fitting import find_weights
from musicnet.networks.pretrained import Pretrained, save_pretrained
from musicnet.records.atomic_files import write_bytes

_SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}


def run(argv: Sequence[str]) -> int:
    """Export trained weights.

    Args:
        argv: what follows the word `export`.

    Returns:
        The exit code: 0, or 1 after one line on what is wrong; then nothing is written.
    """
    try:
        arguments = _parser().parse_args(argv)
        pretrained = find_weights(arguments.weights)
        target: Path = arguments.output or Path(f"{pretrained.name}{_SUFFIXES[arguments.to]}")
        check_file_target("--output", target, [Path(arguments.weights)])
        _export(pretrained, arguments.to, target)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(told(error))
        return BAD_INPUT
    print(target)
    return 0


def _export(pretrained: Pretrained, kind: str, target: Path) -> None:
    if kind == "safetensors":
        if pretrained.settings is None:
            raise ValueError(f"{pretrained.name} must name the sizes of its network: got none.")
        save_pretrained(
            target, pretrained.network, pretrained.scene, pretrained.settings, pretrained.card
        )
        return
    # exporters take their time to load
    from musicnet.networks import exporting

    make = exporting.to_onnx if kind == "onnx" else exporting.to_torch_export
    write_bytes(target, make(pretrained))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m musicnet export",
        description="Trained weights for other programs: safetensors (weights and description), "
        "torch-export (snapshots to pseudo-spectrum), onnx (image to pseudo-spectrum). Each holds "
        "its description, and is checked before it is written.",
        allow_abbrev=False,
    )
    parser.add_argument("--weights", required=True, metavar="NAME|FILE", help="what to export")
    parser.add_argument("--to", required=True, choices=list(_SUFFIXES), help="the kind of file")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: NAME and a suffix")
    return parser
