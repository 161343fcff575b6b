"""What every format must withstand besides being cut off: any byte damaged."""

import pytest

from ckpt_tools.errors import CkptError
from ckpt_tools.formats import open_checkpoint


def assert_withstands_damage(data: bytes, *, step: int = 1) -> int:
    """Open *data* with each *step*-th byte inverted, raised and set: a description or a `CkptError` each time.

    How many were described.
    """
    described = 0
    for at in range(0, len(data), step):
        for byte in {data[at] ^ 0xFF, data[at] ^ 0x01, 0xFF, 0x7F} - {data[at]}:
            try:
                open_checkpoint(data[:at] + bytes([byte]) + data[at + 1 :])
                described += 1
            except CkptError as error:
                assert str(error)
            except Exception as error:
                pytest.fail(f"byte {at} as {byte:#04x}: {type(error).__name__}: {error}")
    return described
