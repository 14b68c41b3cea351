"""One file for tensors and a JSON header: safetensors, which holds no code, written whole or not at all.

A checksum tells a file in which a bit has changed. Files of before have none, and are read without.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bayesuq.writing import replacing

HEADER, CHECKSUM = "bayesuq", "sha256"
CHECKSUM_LENGTH = 64  # hexadecimal digits
LONGEST_HEADER = 2**26  # bytes
MOST_CONTAINERS = 10**6  # lists and mappings in a header, each of which takes some 100 bytes of memory

DTYPES = {  # as safetensors names them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.complex64: "C64",
}


def write(path: str | PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and header, in place of what is there: see `bayesuq.writing.replacing`.

    Raises:
        OSError: The folder does not exist or cannot be written; an older file at `path` is then as it was.
    """
    own = {name: _plain(tensor) for name, tensor in tensors.items()}
    # In the header itself: of two texts, safetensors would choose the order anew in each file.
    text = json.dumps({**header, CHECKSUM: _checksum(json.dumps(header), own)})
    with replacing(path) as file:
        for part in _parts({HEADER: text}, own):
            file.write(part)


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU and contiguous: the tensor itself where it is so, unless it is one number, whose stride may be any."""
    own = tensor.detach().cpu()
    return own.contiguous() if own.numel() > 1 else own.clone(memory_format=torch.contiguous_format)


def _parts(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """The bytes of a file in the format of safetensors, one tensor after another: none is copied to be written.

    Tensors stand by the size of their numbers, so that each begins where its numbers may, and then by name.
    """
    entries: dict[str, Any] = {"__metadata__": dict(texts)}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    start = 0
    for name in names:
        end = start + tensors[name].numel() * tensors[name].element_size()
        kind = DTYPES[tensors[name].dtype]
        entries[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for name in names:
        if tensors[name].numel():
            yield tensors[name].reshape(-1).view(torch.uint8).numpy().data


def read(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors (on the CPU) of a file that `write` wrote.

    Raises:
        FileNotFoundError: No such file.
        IsADirectoryError: A folder.
        ValueError: Truncated, changed since it was written, or another kind of file.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder; name the file in it.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {os.fspath(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            if texts.keys() - {HEADER}:
                raise ValueError("it names texts that no version writes")
            header = _parsed(texts[HEADER])
            # Copies, because a sum over memory that is not aligned, as in the file, can differ in its last bit.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, ValueError, RecursionError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not a complete file written by bayesuq: {error!r}. Of a state_dict, load it "
            "into its network, and pass that to `bayesuq.adopt(net, likelihood)`."
        ) from error
    if not _agrees(header, tensors):
        raise ValueError(
            f"{os.fspath(path)!r} has changed since it was written: its checksum is another. Copy it again, or use an "
            "earlier one."
        )
    header.pop(CHECKSUM, None)
    return header, tensors


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _parsed(text: str) -> dict[str, Any]:
    """The header, of a size that a file of ours can have.

    Raises:
        ValueError: Not JSON, no mapping, or too much of it.
    """
    if len(text) > LONGEST_HEADER or text.count("[") + text.count("{") > MOST_CONTAINERS:
        raise ValueError("its header is larger than that of any file of ours")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    return header


def _agrees(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the checksum is theirs; where its name has changed, it is known by its length and place, the last."""
    own = {name: value for name, value in header.items() if name != CHECKSUM}
    if CHECKSUM in header:
        return bool(header[CHECKSUM] == _checksum(json.dumps(own), tensors))
    last = [*own.values()][-1:]
    return not (last and isinstance(last[0], str) and len(last[0]) == CHECKSUM_LENGTH)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Of a header and of contiguous tensors on the CPU, in the order of their names."""
    state = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        state.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
