"""Imports libraries without the terminal faces that they bring along: for a process that nobody looks at.

structlog takes rich for its development renderer wherever it finds it, httpx takes click, rich and pygments
for its command line, securesystemslib takes pkcs11 for keys in tokens, each behind an `except ImportError`;
in the service they are 7 MiB that nothing uses.
"""

from __future__ import annotations

import importlib
import sys

FACES = ("rich", "click", "pygments", "pkcs11")
LIBRARIES = ("structlog", "httpx", "securesystemslib.signer")


def load_without_terminal() -> None:
    """Import these libraries as where those faces are not installed; later imports of them work as ever.

    For the start of a process: another thread's import of a face would fail meanwhile. What was imported
    before stays as it is.
    """
    hidden = [face for face in FACES if face not in sys.modules]
    # None is the import system's own word for a module that is not to be found (its reference, 5.3.1).
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        for library in LIBRARIES:
            importlib.import_module(library)
    except ImportError:
        # A version that can't do without is imported whole by whoever needs it: larger, and it works.
        pass
    finally:
        for face in hidden:
            del sys.modules[face]
