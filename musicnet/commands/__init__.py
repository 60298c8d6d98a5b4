"""The small commands of `python -m musicnet`, one thin file each."""
