"""An ECU's own signed document, carried by its image's target in the image repository. Pure.

A bootloader that verifies (CONTRACTS: trust class `verifies`) asks for a document of one firmware
(shared.trust.document) beside the image. It travels in the target's signed `custom`, so that whoever has
the metadata has it too, by link or by USB. Here it is only made sure that it speaks of exactly this
firmware; who signed it is for the ECU to judge, by keys that the gateway has not.
"""

from __future__ import annotations

from typing import Any

from shared.release import FirmwareSpec
from shared.trust.document import BadDocument, read_unverified

DOCUMENT = "document"
"""Its name in a target's `custom`."""

MOST_ECU_DOCUMENT_BYTES = 4096


def document_of(custom: dict[str, Any], spec: FirmwareSpec) -> bytes | None:
    """The document in an image target's `custom`; None when there is none. Raises BadDocument.

    It must be text of at most MOST_ECU_DOCUMENT_BYTES that names the firmware `spec`, field by field.
    """
    if DOCUMENT not in custom:
        return None
    said = custom[DOCUMENT]
    if not isinstance(said, str):
        raise BadDocument(f"custom.{DOCUMENT} is not text")
    return check_ecu_document(said.encode("utf-8", "replace"), spec)


def check_ecu_document(raw: bytes, spec: FirmwareSpec) -> bytes:
    """The same bytes, when they may travel with the image of `spec`. Raises BadDocument."""
    if len(raw) > MOST_ECU_DOCUMENT_BYTES:
        raise BadDocument(f"a document of {len(raw)} bytes, an ECU's has at most {MOST_ECU_DOCUMENT_BYTES}")
    named = read_unverified(raw)
    for field in ("kind", "hardware", "version", "release_counter", "length", "sha256"):
        theirs, ours = getattr(named, field), getattr(spec, field)
        if theirs != ours:
            raise BadDocument(
                f"the ECU's document is of another firmware: {field} {_words(theirs)}, not {_words(ours)}"
            )
    return raw


def _words(value: object) -> str:
    return ", ".join(map(str, value))[:200] if isinstance(value, tuple) else str(value)[:80]
