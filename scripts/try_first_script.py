"""Run the first program of a README against a server of this environment's: `try_first_script.py README.md`."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from aheadless.server import ServerSettings, run_server


async def main(readme: str) -> None:
    """Run it, and print what it said; fail if it fails, or says nothing."""
    program = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)[0]
    async with run_server(ServerSettings(port=0)) as server:
        settings = {"AHEADLESS_BASE_URL": server.url, "AHEADLESS_API_KEY": server.api_key.reveal()}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", program),
            stdout=subprocess.PIPE,
            env={**os.environ, **settings},
        )
        said, _ = await asyncio.wait_for(process.communicate(), 60)
    print(said.decode())
    if process.returncode or not said.strip():
        sys.exit(f"the program ended with {process.returncode}")


asyncio.run(main(Path(sys.argv[1]).read_text("utf-8")))
