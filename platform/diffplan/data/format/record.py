"""JSON records with their own checksum, so that a damaged record is not read as a different, valid one.

A record is a JSON object whose first field is `checksum`, of fixed width: the CRC-32, in 8 hexadecimal digits, of all
bytes of the file after the first `PREFIX_BYTES`.

```
{"checksum": "9ae0f1c2", "unit": 7, ...}
                         ^ checked from here to the end of the file
```
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from diffplan.files import parse_json

PREFIX_BYTES = len(b'{"checksum": "00000000", ')


def encode_record(values: dict[str, Any]) -> bytes:
    """The bytes of a record in its file.

    Args:
        values: JSON values, at least one, none named `checksum`.
    """
    rest = json.dumps(values, allow_nan=False).encode()[1:] + b"\n"
    return b'{"checksum": "%08x", ' % zlib.crc32(rest) + rest


def decode_record(content: bytes) -> dict[str, Any]:
    """The values of a record; the inverse of `encode_record`.

    Raises:
        ValueError: not a record, or its checksum does not match.
    """
    values = parse_json(content)
    if not isinstance(values, dict) or not isinstance(expected := values.pop("checksum", None), str):
        raise ValueError("it has no checksum of its own")
    found = f"{zlib.crc32(content[PREFIX_BYTES:]):08x}"
    if found != expected:
        raise ValueError(f"its checksum is {found}, not {expected}")
    return values
