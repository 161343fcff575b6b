"""Checkpoints made without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def safetensors_file(path: Path, sizes: Mapping[str, int], fill: int = 7) -> Path:
    """A safetensors file of byte tensors of these *sizes*, each of bytes that depend on the place and on *fill*."""
    header: dict[str, object] = {}
    position = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = bytes((fill * n + n // 251) % 256 for n in range(65_521))  # a prime, so that no two pages are the same
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while position > 0:
            file.write(block[:position])
            position -= len(block)
    return path
