"""Both families, both kinds of frame, both lengths of identifier: flashed and proved on the model bus."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("extended", [False, True], ids=["11-bit", "29-bit"])
@pytest.mark.parametrize("fd", [False, True], ids=["classic", "fd"])
@pytest.mark.parametrize("word", ["stm32-uds", "esp32-uds"])
async def test_it_flashes_and_proves_it(lab: Any, word: str, fd: bool, extended: bool) -> None:
    ecu = lab.ecu(word, fd=fd, extended=extended)
    async with ecu.flasher() as flasher:
        before = await flasher.identify()
        assert (before.kind, before.hardware, before.version) == ("brake-controller", "B2", "1.0.0")
        assert before.sha256 == ecu.old.spec.sha256
        await flasher.stage(ecu.new)
        await flasher.activate()
        identity = await flasher.verify(ecu.new)
        await flasher.confirm()
    assert (identity.version, identity.sha256) == ("1.1.0", ecu.new.spec.sha256)
    assert ecu.runs() == ecu.new.spec
    assert ecu.model.frames > 100
