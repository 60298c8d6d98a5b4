"""The Lightning door, `python -m musicnet fit|... --config <run>/config.yaml`, and the commands."""

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import get_args

from musicnet.processors import let_waiting_threads_sleep

let_waiting_threads_sleep()  # before torch is imported, which asks once

from musicnet.cli import (  # noqa: E402
    BAD_INPUT,
    ConfigurationError,
    MusicCLI,
    Verb,
    console,
    fit_as_further_rank,
    launch_environment,
    nearest,
    run_verb,
)

COMMANDS = {
    "localize": "musicnet.commands.localize",
    "evaluate": "musicnet.commands.evaluate",
    "inspect": "musicnet.commands.inspect",
    "convert": "musicnet.commands.convert",
    "export": "musicnet.commands.export",
    "doctor": "musicnet.commands.doctor",
}
"""Word -> module whose `run` takes what follows it."""

SIMULATE = "simulate"
"""The command that has to know experiments as well."""

USAGE = (
    "usage: python -m musicnet {fit,validate,test,predict} --config <run>/config.yaml [--help]\n"
    f"       python -m musicnet {{{','.join([*COMMANDS, SIMULATE])}}} ... [--help]"
)


def run(argv: Sequence[str]) -> int:
    """Run one verb.

    Args:
        argv: the verb and its arguments.

    Returns:
        The exit code.
    """
    if argv and argv[0] in COMMANDS:
        exit_code: int = importlib.import_module(COMMANDS[argv[0]]).run(argv[1:])
        return exit_code
    if argv and argv[0] == SIMULATE:
        # neither may import the other: experiments are Hydra's, and commands do without it
        simulate = importlib.import_module("musicnet.commands.simulate")
        scenes = importlib.import_module("musicnet.cli.scenes")
        simulated: int = simulate.run(argv[1:], scenes.experiment_scene)
        return simulated
    with console(), launch_environment():
        try:
            if (ended := fit_as_further_rank()) is not None:
                return ended
            return run_verb(_build(argv)).exit_code
        except ConfigurationError as error:
            sys.stderr.write(f"error: {error}\n")
            return BAD_INPUT


def _build(argv: Sequence[str]) -> MusicCLI:
    word, *args = argv or [""]
    if word in ("-h", "--help"):
        sys.stdout.write(f"{USAGE}\n")
        raise SystemExit(0)
    for verb in get_args(Verb):
        if word == verb:
            return MusicCLI(args, verb=verb)
    raise ConfigurationError(
        f"the first word must say what to do: got {word!r}. "
        f"{nearest(word, [*get_args(Verb), *COMMANDS, SIMULATE])}"
    )


def main() -> int:
    """Run what was typed."""
    is_command = sys.argv[1:2] and sys.argv[1] in {*COMMANDS, SIMULATE}
    if is_command and hasattr(signal, "SIGPIPE"):
        # nobody reads on, as in ``... | head``: leave quietly, as other programs do
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
