"""ONNX files without the onnx package, which asks for a newer numpy than the hosts have: a dozen of protobuf's fields.

Field numbers from onnx/onnx.proto (ModelProto and below).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FLOAT, _INT, _INTS = 1, 2, 7  # TensorProto.DataType.FLOAT, AttributeProto.AttributeType.INT and .INTS
_FORMAT, _OPERATORS = 8, 13  # what the published taggers have or older, and every onnxruntime of the last years reads


def model(nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], weights: Sequence[bytes]) -> bytes:
    """A whole file."""
    graph = b"".join(
        [_all(1, nodes), _field(2, b"graph"), _all(5, weights), _all(11, inputs), _all(12, outputs)]
    )
    return _field(1, _FORMAT) + _field(7, graph) + _field(8, _field(2, _OPERATORS))


def node(kind: str, inputs: Sequence[str], output: str, **attributes: int | list[int]) -> bytes:
    """An operator."""
    made = [_attribute(name, value) for name, value in attributes.items()]
    return _all(1, [name.encode() for name in inputs]) + _field(2, output.encode()) + _field(4, kind.encode()) + _all(
        5, made
    )


def value(name: str, shape: Sequence[int | str]) -> bytes:
    """An input or output of floats; a size may have a name instead."""
    sizes = [_field(2, size.encode()) if isinstance(size, str) else _field(1, size) for size in shape]
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, _all(1, sizes))))


def tensor(name: str, values: np.ndarray) -> bytes:
    """A constant of floats."""
    dims = _all(1, list(values.shape))
    return dims + _field(2, _FLOAT) + _field(8, name.encode()) + _field(9, values.astype("<f4").tobytes())


def _attribute(name: str, value: int | list[int]) -> bytes:
    if isinstance(value, int):
        return _field(1, name.encode()) + _field(3, value) + _field(20, _INT)
    return _field(1, name.encode()) + _all(8, value) + _field(20, _INTS)


def _all(number: int, contents: Sequence[int | bytes]) -> bytes:
    return b"".join(_field(number, content) for content in contents)


def _field(number: int, content: int | bytes) -> bytes:
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
