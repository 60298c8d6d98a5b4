"""Words of variable length in HDF5 files, read without the library.

They lie in heaps of their own, over which the library loops for ever where one of their lengths is
damaged. Here a heap is walked in steps that only go forward.

Source: HDF5 File Format Specification, version 3, section III.E, the global heap.
"""

import struct
from pathlib import Path
from typing import Any

from musicnet.recordings.archives import RecordingError

_LONGEST_WORD = 4096
_HEAP = struct.Struct("<4sB3xQ")  # mark, version, length of the whole
_OBJECT = struct.Struct("<HH4xQ")  # number, references, length; 0 is free space, the end
_REFERENCE = struct.Struct("<IQI")  # length, place of the heap, number of the object


def read_word(item: Any, path: Path, name: str) -> bytes:
    """Reads a data set that is one text of variable length.

    Args:
        item: the data set of an open file that has nothing in front.
        path: of the file.
        name: file and key, for messages.

    Returns:
        Its bytes.

    Raises:
        OSError: the file cannot be read.
        RecordingError: the text is damaged, too long, or kept in another way.
    """
    place = item.id.get_offset()
    sizes = item.file.id.get_create_plist().get_sizes()
    if place is None or tuple(sizes) != (8, 8):
        raise RecordingError(
            f"{name} is a text of variable length that lies in no piece of its own; store it with "
            "a fixed length."
        )
    with path.open("rb") as file:

        def unpacked(layout: struct.Struct, place: int) -> tuple[Any, ...]:
            file.seek(place)
            content = file.read(layout.size)
            if len(content) < layout.size:
                raise _damaged(name)
            return layout.unpack(content)

        try:
            length, place, number = unpacked(_REFERENCE, place)
            if length == 0:
                return b""
            mark, version, size = unpacked(_HEAP, place)
            end, place = place + size, place + _HEAP.size
            if mark != b"GCOL" or version != 1 or length > _LONGEST_WORD:
                raise _damaged(name)
            while place + _OBJECT.size <= end:
                found, _, size = unpacked(_OBJECT, place)
                if found == number and number and length <= size:
                    return file.read(length)
                if found == 0:
                    break
                place += _OBJECT.size + -(-size // 8) * 8
        except (OverflowError, OSError) as error:  # no place of a file
            raise _damaged(name) from error
    raise _damaged(name)


def _damaged(name: str) -> RecordingError:
    return RecordingError(f"{name} is a text that is damaged, or longer than {_LONGEST_WORD}.")
