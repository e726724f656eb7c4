"""The real office as a child process, and the REST calls that a scenario makes of it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx

from control_plane.embedded import child
from shared.errors import OtaError

START_WITHIN_S = 90.0
REQUEST_TIMEOUT_S = 20.0


class OfficeFailed(OtaError):
    """The office did not start, or refused what the scenario needs."""

    code = "office_failed"
    advice = "Run it again with --keep and look at the logs in the data folder."


class OfficeProcess:
    """`quarry serve` on free ports with its data in `folder`, as a resource; `config` is its TOML file.

    Ends with this process however it ends; `start` and `kill` may be repeated on the same folder.
    """

    def __init__(self, folder: Path, config: Path | None = None) -> None:
        self.folder = folder
        self._config = config
        self.mqtt_host = ""
        self.mqtt_port = 0
        self.http_host = ""
        self.http_port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._api: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._api is not None:
            await self._api.aclose()
        if self._process is not None:
            await child.stop(self._process, how=signal.SIGTERM, within_s=30)

    async def start(self) -> None:
        """Start it and wait until it answers. Raises OfficeFailed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        endpoints = self.folder / "endpoints.json"
        endpoints.unlink(missing_ok=True)
        log = self.folder.with_suffix(".log")
        self._process = child.start(
            [
                *(sys.executable, "-P", "-m", "cli.main", "serve", "--data", str(self.folder)),
                *("--http-port", "0", "--mqtt-port", "0"),
                *(() if self._config is None else ("--config", str(self._config))),
            ],
            log=log,
        )
        try:
            async with asyncio.timeout(START_WITHIN_S):
                while not endpoints.exists():
                    if self._process.poll() is not None:
                        raise OfficeFailed(f"the office ended at its start: {child.tail(log)[-600:]}")
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise OfficeFailed(f"the office was not ready within {START_WITHIN_S:.0f} s") from error
        found = json.loads(endpoints.read_text())
        url = httpx.URL(found["url"])
        self.http_host, self.http_port = url.host, url.port or 80
        self.mqtt_host, self.mqtt_port = found["mqtt_host"], found["mqtt_port"]
        token = (self.folder / "admin-token").read_text().strip()
        if self._api is not None:
            await self._api.aclose()
        self._api = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,
        )

    async def kill(self) -> None:
        """SIGKILL: nothing of it is told beforehand."""
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    async def call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """One request; returns its JSON object. Raises OfficeFailed with the problem's sentence."""
        assert self._api is not None
        answer = await self._api.request(method, path, **more)
        body: dict[str, Any] = answer.json() if answer.content else {}
        if answer.is_error:
            raise OfficeFailed(f"{method} {path}: {answer.status_code} {body.get('detail')}")
        return body

    def stored_image(self, sha256: str) -> Path:
        """Where an image lies in the firmware store."""
        return self.folder / "firmware" / f"{sha256}.bin"
