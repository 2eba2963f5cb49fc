"""Write what the fuzzer of the decoder begins with: recorded streams and our JSON cases, a file each."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from tests.protocol.json_cases import DOCUMENTS, VALUES
from tests.support import recorded

LONGEST = 400


def seeds() -> list[bytes]:
    streams = [exchange["body"].encode() for exchange in recorded().values() if exchange["chunk_sizes"]]
    start = b'{"type":"start","conversationId":"c"}\n'
    tokens = [start + b'{"type":"token","token":' + case.data + b"}\n" for case in VALUES]
    return [b"\x04" + data for data in (*streams, *tokens, *(case.data for case in DOCUMENTS)) if len(data) < LONGEST]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for data in seeds():
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
