"""The weights of a checkpoint's folder: which tensors its files hold, and their values into memory that is there.

Nothing but the headers of the files is read until all that is expected has been found in them.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..errors import CheckpointError
from ..layout import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    is_file,
    read_start,
    unreadable,
    weight_names,
)
from ..wording import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from io import FileIO
    from pathlib import Path

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PACKED = {"U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn}
DTYPES = {**FLOATS, **PACKED}
"""Those of files that are read."""
# Of all that may be in a file.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

# The real model's header has some hundred kilobytes, and with each expert by itself 7 million bytes.
MAX_HEADER_BYTES = 1 << 24

# Of a packed matrix.
SCALE = re.compile(r"\.weight_(global_)?scale(_2)?$")
# The bits behind the sign of an e4m3 number.
E4M3_NAN = 127

# So much of a file is on its way at a time.
STAGED_BYTES = 1 << 24

NAMES_SHOWN = 3
NAME_CHARACTERS_SHOWN = 150


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of its file describes it."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    """as safetensors writes it: "BF16" """
    start: int
    """Where in the file its bytes begin, in C order and little-endian."""

    @property
    def num_bytes(self) -> int:
        """Raises `ValueError` for a shape or a dtype that means nothing."""
        if not all(type(size) is int and size >= 0 for size in self.shape):
            raise ValueError(f"{self.name} has no shape")
        return math.prod(self.shape) * BITS[self.dtype] // 8

    @property
    def place(self) -> tuple[Path, int]:
        """By which tensors are read in the order of the disk."""
        return self.file, self.start


class Stamp(NamedTuple):
    """What changes when a file is replaced."""

    num_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns)


Found = dict[str, list[StoredTensor]]
"""Of each tensor of a network where its values are, first, and copies of them under other names."""


@dataclass(frozen=True)
class Weights:
    """The tensors of all weight files of a folder, by their names."""

    folder: Path
    tensors: Mapping[str, StoredTensor]
    stamps: Mapping[Path, Stamp]
    """Of all files, when their headers were read."""

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(stamp.num_bytes for stamp in self.stamps.values())

    def find(
        self, expected: Mapping[str, torch.Tensor], also_called: Callable[[str], list[str]] = lambda name: []
    ) -> Found:
        """Where the values of tensors are, which may be on the meta device. What else there is is let through.

        `also_called` names a tensor may have instead of its own, or besides.

        Raises `CheckpointError` if any is not there, of another shape, or of numbers that don't belong there.
        """
        found: Found = {}
        for name in expected:
            names = (name, *also_called(name))
            found[name] = [self.tensors[each] for each in names if each in self.tensors]
        pairs = [(stored, expected[name]) for name, each in found.items() for stored in each]
        self.refuse_misfits(
            {
                "missing weights": [name for name, each in found.items() if not each],
                "weights of another size": [
                    f"{stored.name} is {list(stored.shape)}, not {list(place.shape)}"
                    for stored, place in pairs
                    if stored.shape != place.shape and not (place.ndim == 0 and stored.shape == (1,))
                ],
                "weights that are no plain floating-point numbers": [
                    f"{stored.name} is {stored.dtype}"
                    for stored, place in pairs
                    if place.dtype not in PACKED.values() and stored.dtype not in FLOATS
                ],
                "weights that are packed otherwise than their like": [
                    f"{stored.name} is {stored.dtype}"
                    for stored, place in pairs
                    if place.dtype in PACKED.values() and PACKED.get(stored.dtype) != place.dtype
                ],
            }
        )
        return found

    def refuse_misfits(self, problems: Mapping[str, Iterable[str]]) -> None:
        """Raises `CheckpointError` if anything has a problem: names by what is wrong with them."""
        listed = {what: sorted(names) for what, names in problems.items()}
        found = [f"{what} ({some(names)})" for what, names in listed.items() if names]
        if found:
            raise CheckpointError(
                f"The weights in {quoted(self.folder)} don't fit the model that its {CONFIG_FILE} describes: "
                f"{'; '.join(found)}. Download the model again, or use another revision of it."
            )

    def read(
        self,
        places: Mapping[str, torch.Tensor],
        found: Found,
        check_wanted: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """Fill contiguous tensors, on any device and of a dtype that `find` took, with what it found for them.
        What else it found is only held against its copies, if it has any.

        `check_wanted` is called before each tensor and may raise, `progress` with the number of bytes read.

        Raises `CheckpointError` if a file ends early, a scale is none or a tensor's copies differ, and
        `FileAccessError`.
        """
        with self.reader(progress) as reader:
            wanted = [name for name, stored in found.items() if name in places or len(stored) > 1]
            for name in sorted(wanted, key=lambda name: found[name][0].place):
                check_wanted()
                first, *copies = found[name]
                place = places[name] if name in places else torch.empty(first.shape, dtype=DTYPES[first.dtype])
                reader.fill(place, first)
                for stored in copies:
                    self._check_copy(reader, place, first, stored)

    def reader(self, progress: Callable[[int], None] = lambda num_bytes: None) -> Reader:
        """`progress` is called with the number of bytes read."""
        return Reader(self.stamps, progress)

    def _check_copy(self, reader: Reader, place: torch.Tensor, first: StoredTensor, stored: StoredTensor) -> None:
        copy = torch.empty_like(place)
        reader.fill(copy, stored)
        # As bytes: a number that is none equals nothing.
        if not torch.equal(copy.view(-1).view(torch.uint8), place.view(-1).view(torch.uint8)):
            raise CheckpointError(
                f"{quoted(self.folder)} holds weights as {quoted(first.name)} and others as "
                f"{quoted(stored.name)}, which this model shares. Use another checkpoint."
            )


class Reader:
    """Reads tensors' values from weight files into their places. For one thread at a time.

    It reads the files, and doesn't map them into memory: where a mapped file has become shorter, or its disk
    fails, the process is killed. What can't be read straight into its place passes through `STAGED_BYTES` of the
    host's memory. The file that was read from last stays open: a packed checkpoint has some ten thousand tensors.
    """

    def __init__(self, stamps: Mapping[Path, Stamp], progress: Callable[[int], None]) -> None:
        self._stamps = stamps
        self._progress = progress
        self._file: Path | None = None
        self._stream: FileIO | None = None
        self._staging: torch.Tensor | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def fill(self, place: torch.Tensor, stored: StoredTensor) -> None:
        """Read a tensor's values into its place, contiguous and of any dtype that these numbers may become.

        Raises `CheckpointError` if the file ends early or a scale is none, and `FileAccessError`.
        """
        dtype, flat = DTYPES[stored.dtype], place.view(-1)
        if dtype.itemsize == 1:  # not to be converted, and not every device knows them all
            dtype, flat = torch.uint8, flat.view(torch.uint8)
        is_straight = flat.device.type == "cpu" and flat.dtype == dtype
        at_a_time = STAGED_BYTES // dtype.itemsize
        try:
            stream = self._open(stored.file)
            stream.seek(stored.start)
            for first in range(0, len(flat), at_a_time):
                part = flat[first : first + at_a_time]
                values = part if is_straight else self._staged(part, dtype)
                if not _read_whole(stream, values.view(torch.uint8).numpy().data):
                    raise _damaged(stored.file, "it has become shorter")
                if SCALE.search(stored.name):
                    _check_scale(stored, values)
                if not is_straight:
                    part.copy_(values)
                self._progress(values.nbytes)
        except OSError as error:
            raise unreadable(stored.file, error) from error

    def _staged(self, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Room on the host for the values of a part, in the dtype of the file."""
        if self._staging is None or (part.is_cuda and not self._staging.is_pinned()):
            self._staging = torch.empty(STAGED_BYTES, dtype=torch.uint8, pin_memory=part.is_cuda)
        return self._staging[: len(part) * dtype.itemsize].view(dtype)

    def _open(self, file: Path) -> FileIO:
        if self._stream is None or self._file != file:
            self._close()
            self._stream, self._file = file.open("rb", buffering=0), file
            if Stamp.of(os.fstat(self._stream.fileno())) != self._stamps[file]:
                raise CheckpointError(
                    f"{quoted(file)} was changed while it was in use, and what was read before is of another "
                    "model. Start again."
                )
        return self._stream

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = self._file = None


def read_headers(folder: Path) -> Weights:
    """What the weight files of a folder hold.

    Raises `CheckpointError` if one is missing or damaged or two have the same tensor, and `FileAccessError`.
    """
    names = weight_names(folder)
    if not names:
        raise CheckpointError(
            f"{quoted(folder)} has no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there. Download the "
            "model again."
        )
    missing = [name for name in names if not is_file(folder / name)]
    if missing:
        raise CheckpointError(
            f"{quoted(folder)} is incomplete: {len(missing)} of {len(names)} weight files are missing "
            f"({some(missing)}). Download the model again; what is there will be kept."
        )
    tensors: dict[str, StoredTensor] = {}
    stamps: dict[Path, Stamp] = {}
    for name in names:
        file = folder.absolute() / name  # it may be read from while the program is in another folder
        stamps[file] = Stamp.of(file.stat())
        added = _read_header(file, stamps[file].num_bytes)
        if twice := sorted(tensors.keys() & added.keys()):
            raise CheckpointError(
                f"{quoted(folder)} has the same tensors in two of its files ({some(twice)}). Download the model "
                "again."
            )
        tensors |= added
    return Weights(folder, tensors, stamps)


def check_layers(weights: Weights, prefix: str, layers: int, what: str) -> None:
    """Refuse a config of other layers than there are weights of, before anything is made that is as deep.

    `prefix` is a pattern of what stands before "layers." in names. Raises `CheckpointError`.
    """
    numbers = {
        match["layer"]
        for name in weights.tensors
        if (match := re.match(rf"{prefix}layers\.(?P<layer>\d+)\.", name))
    }
    if len(numbers) != layers:
        raise CheckpointError(
            f"The {CONFIG_FILE} in {quoted(weights.folder)} describes {layers} layers of the {what}, and there "
            f"are weights of {len(numbers)}. Download the model again, or use another revision of it."
        )


def some(names: Iterable[str]) -> str:
    """The first few names, for a sentence."""
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(quoted(name, NAME_CHARACTERS_SHOWN) for name in names[:NAMES_SHOWN]) + more


def _read_header(file: Path, num_bytes: int) -> dict[str, StoredTensor]:
    """The tensors of a file of that size by name: one behind the other, and nothing else.

    The format's own library would map the whole file, which counts against a limit of the address space.
    """
    try:
        length = int.from_bytes(read_start(file, 8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError("its header is larger than any such file's")
        header = json.loads(read_start(file, 8 + length)[8:].decode())
        header.pop("__metadata__", None)
        tensors = {}
        end = 8 + length
        for name, each in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            stored = StoredTensor(name, file, tuple(each["shape"]), each["dtype"], end)
            if each["data_offsets"] != [end - 8 - length, end - 8 - length + stored.num_bytes]:
                raise ValueError(f"{name} is not where its header says")
            tensors[name] = stored
            end += stored.num_bytes
        if end != num_bytes:
            raise ValueError(f"it has {num_bytes:,} bytes, and by its header {end:,}")
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, quoted(error)) from error
    return tensors


def _check_scale(stored: StoredTensor, values: torch.Tensor) -> None:
    """Some values of a packed matrix's scales, of which one flipped bit can make a network's output nothing.

    Those of NVFP4's blocks may be 0, where a block's numbers are too small for the others of their matrix.
    """
    if values.dtype == torch.uint8:
        # Not torch's, whose threads wait for each other ten thousand times: a minute on a busy machine.
        largest = int(values.numpy().max())
        if largest < E4M3_NAN:
            return
        value = "a number below 0" if largest != E4M3_NAN and largest != 255 else "NaN"
    else:
        least, most = (float(each) for each in values.aminmax())
        if least > 0 and most < math.inf:
            return
        value = str(least if not least > 0 else most)
    raise _damaged(stored.file, f"its {stored.name} holds {value}, which is no scale")


def _read_whole(stream: FileIO, buffer: memoryview) -> bool:
    """Fill a buffer from a file, which may give less than asked for. False at the file's end."""
    filled = 0
    while filled < len(buffer):
        count = stream.readinto(buffer[filled:])
        if not count:
            return False
        filled += count
    return True


def _damaged(file: Path, how: str) -> CheckpointError:
    return CheckpointError(f"{quoted(file)} is damaged or was not downloaded whole ({how}). {_replacement(file)}")


def _replacement(file: Path) -> str:
    """How to come by a whole file. Only in the Hub's cache what a link leads to is this file's own."""
    content, blobs = file.resolve(), file.parent.parent.parent / "blobs"
    if file.is_symlink() and file.parent.parent.name == "snapshots" and content.parent == blobs.resolve():
        return f"Delete {quoted(content)} and download it again."
    return "Replace it by a whole copy."
