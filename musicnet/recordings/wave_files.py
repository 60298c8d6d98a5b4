"""Whether a WAV file holds the sound that its header declares: decoders do not say so."""

import struct
from pathlib import Path
from typing import BinaryIO

from musicnet.recordings.archives import RecordingError

_UNKNOWN = 0x7FFFF000  # and more is declared by what could not go back to the header
_MOST_CHUNKS = 1024


def check_wave_is_whole(path: Path) -> None:
    """Refuses a WAV file that ends before its sound does; of other kinds nothing is said.

    Args:
        path: a local file.

    Raises:
        RecordingError: it was cut.
    """
    with path.open("rb") as file:
        declared = _declared(file)
        if declared is None:
            return
        start = file.tell()
        held = file.seek(0, 2) - start
    if held < declared:
        raise RecordingError(
            f"{path} is truncated: it declares {declared} bytes of sound and holds {held}. Copy it "
            "again."
        )


def _declared(file: BinaryIO) -> int | None:
    """Bytes of sound that the header declares, the file standing at the first of them."""
    begins = file.read(12)
    if begins[:4] not in (b"RIFF", b"RIFX", b"RF64") or begins[8:] != b"WAVE":
        return None
    order, long_size = (">" if begins[:4] == b"RIFX" else "<"), None
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return None
        name, size = struct.unpack(f"{order}4sI", head)
        if name == b"data":
            size = long_size if begins[:4] == b"RF64" else size
            is_known = size is not None and (size == long_size or 0 < size < _UNKNOWN)
            return size if is_known else None
        if name == b"ds64" and size >= 16:
            beginning = file.read(16)
            if len(beginning) < 16:
                return None
            long_size = struct.unpack("<QQ", beginning)[1]
            size -= 16
        file.seek(size + size % 2, 1)  # chunks begin at even places
    return None
