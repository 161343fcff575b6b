"""One table of element types; every mapping between torch, safetensors, numpy and storages derives from it.

Sizes are those of ``torch.dtype.itemsize``: sub-byte types that torch packs (``float4_e2m1fn_x2``,
``quint4x2``) count bytes of storage elements, not packed values.
"""

from __future__ import annotations

from typing import NamedTuple


class DType(NamedTuple):
    """An element type.

    *name* is torch's (``float32``); *itemsize* the bytes one element takes in a storage; *kind* one of
    float, int, uint, complex, bool, quantized, bits; *storage* the class torch pickles a typed storage
    under, if any; *safetensors* the name in that format, if it can hold it; *numpy* the numpy type that
    reads its bytes, a dotted name where ml_dtypes provides it; *packed* how many elements share each of these.
    """

    name: str
    itemsize: int
    kind: str
    storage: str | None = None
    safetensors: str | None = None
    numpy: str | None = None
    packed: int = 1

    def __str__(self) -> str:
        return self.name


_TABLE = (
    DType("float64", 8, "float", "DoubleStorage", "F64", "float64"),
    DType("float32", 4, "float", "FloatStorage", "F32", "float32"),
    DType("float16", 2, "float", "HalfStorage", "F16", "float16"),
    DType("bfloat16", 2, "float", "BFloat16Storage", "BF16", "ml_dtypes.bfloat16"),
    DType("float8_e4m3fn", 1, "float", None, "F8_E4M3", "ml_dtypes.float8_e4m3fn"),
    DType("float8_e5m2", 1, "float", None, "F8_E5M2", "ml_dtypes.float8_e5m2"),
    DType("float8_e4m3fnuz", 1, "float", None, "F8_E4M3FNUZ", "ml_dtypes.float8_e4m3fnuz"),
    DType("float8_e5m2fnuz", 1, "float", None, "F8_E5M2FNUZ", "ml_dtypes.float8_e5m2fnuz"),
    DType("float8_e8m0fnu", 1, "float", None, "F8_E8M0", "ml_dtypes.float8_e8m0fnu"),
    # two 4-bit values in a byte; safetensors counts the values, so its last dimension is twice torch's
    DType("float4_e2m1fn_x2", 1, "float", None, "F4", "uint8"),
    DType("complex128", 16, "complex", "ComplexDoubleStorage", None, "complex128"),
    DType("complex64", 8, "complex", "ComplexFloatStorage", "C64", "complex64"),
    DType("complex32", 4, "complex"),
    DType("bcomplex32", 4, "complex"),
    DType("int64", 8, "int", "LongStorage", "I64", "int64"),
    DType("int32", 4, "int", "IntStorage", "I32", "int32"),
    DType("int16", 2, "int", "ShortStorage", "I16", "int16"),
    DType("int8", 1, "int", "CharStorage", "I8", "int8"),
    DType("uint64", 8, "uint", None, "U64", "uint64"),
    DType("uint32", 4, "uint", None, "U32", "uint32"),
    DType("uint16", 2, "uint", None, "U16", "uint16"),
    DType("uint8", 1, "uint", "ByteStorage", "U8", "uint8"),
    DType("bool", 1, "bool", "BoolStorage", "BOOL", "bool"),
    DType("bit", 1, "bits", None, None, "uint8"),
    *(DType(f"int{bits}", 1, "int", None, None, "int8") for bits in range(1, 8)),
    *(DType(f"uint{bits}", 1, "uint", None, None, "uint8") for bits in range(1, 8)),
    DType("quint8", 1, "quantized", "QUInt8Storage", None, "uint8"),
    DType("qint8", 1, "quantized", "QInt8Storage", None, "int8"),
    DType("qint32", 4, "quantized", "QInt32Storage", None, "int32"),
    DType("quint4x2", 1, "quantized", "QUInt4x2Storage", None, "uint8", 2),
    DType("quint2x4", 1, "quantized", "QUInt2x4Storage", None, "uint8", 4),
    DType("bits1x8", 1, "bits", None, None, "uint8"),
    DType("bits2x4", 1, "bits", None, None, "uint8"),
    DType("bits4x2", 1, "bits", None, None, "uint8"),
    DType("bits8", 1, "bits", None, None, "uint8"),
    DType("bits16", 2, "bits", None, None, "uint16"),
)

BY_NAME = {dtype.name: dtype for dtype in _TABLE}
BY_STORAGE = {dtype.storage: dtype for dtype in _TABLE if dtype.storage}
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in _TABLE if dtype.safetensors}
# what torch also calls them (torch/__init__.py); pickles hold either name
BY_NAME |= {
    alias: BY_NAME[name]
    for alias, name in {
        "double": "float64",
        "float": "float32",
        "half": "float16",
        "cdouble": "complex128",
        "cfloat": "complex64",
        "chalf": "complex32",
        "long": "int64",
        "int": "int32",
        "short": "int16",
    }.items()
}
UINT8 = BY_NAME["uint8"]
