"""A key in a PKCS #11 token (OASIS PKCS #11 v2.40), through securesystemslib's signer: ECDSA P-256.

A login is the whole application's, so two threads never sign at once; and a PIN that was wrong once is
not tried again by this process, since tokens lock themselves after a few.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

from securesystemslib.exceptions import Error as LibraryError
from securesystemslib.signer import HSMSigner, Signer, SSlibKey

from control_plane.director.key_references import (
    Checked,
    KeyReference,
    Opening,
    SigningFailed,
    public_key_of,
)
from shared.trust.keys import BadKey

LIBRARY = "PYKCS11LIB"
"""The environment variable by which securesystemslib's signer finds the token's library."""

NOT_INSTALLED = "python-pkcs11 is not installed"
INSTALL = "Install the extra `pkcs11` of quarry-ota."

_ONE = threading.Lock()


@contextmanager
def _named(library: str) -> Iterator[None]:
    """The signer asks the environment at each signature; others of this process are not to see it."""
    before = os.environ.get(LIBRARY)
    os.environ[LIBRARY] = library
    try:
        yield
    finally:
        if before is None:
            del os.environ[LIBRARY]
        else:
            os.environ[LIBRARY] = before


def public_in_token(signer: str, library: str, ask: Callable[[], str]) -> bytes:
    """The public half of a token's key in PEM; `ask` gives the PIN, where the token shows nothing without it.

    Raises BadKey.
    """
    try:
        import pkcs11
    except ImportError as error:
        raise BadKey(NOT_INSTALLED, advice=INSTALL) from error
    address = urlsplit(signer)
    try:
        with _ONE, _named(library):
            keyid = int(address.path) if address.path else None
            label = dict(parse_qsl(address.query)).get("label")
            _, key = HSMSigner.import_(keyid, label, lambda _: ask())
    except (pkcs11.exceptions.PKCS11Error, LibraryError, ValueError, RuntimeError, OSError) as error:
        raise BadKey(
            f"{signer}: the token can't be read: {error or type(error).__name__}",
            advice="It is hsm:KEYID?label=TOKEN, and --library the token's PKCS #11 library.",
        ) from error
    return str(key.keyval["public"]).encode()


def open_token(reference: KeyReference, opening: Opening, where: str) -> Signer:
    """The signer of `hsm:KEYID?label=TOKEN`. Raises BadKey, also where python-pkcs11 is not installed."""
    try:
        import pkcs11
    except ImportError as error:
        raise BadKey(f"{where}: the token can't be used: {NOT_INSTALLED}", advice=INSTALL) from error
    library = reference.library or os.environ.get(LIBRARY)
    if not library:
        raise BadKey(
            f"{where}: the token can't be used: its library is not named",
            advice=f"Name it as `library` in the reference, or by {LIBRARY}.",
        )
    public_key = public_key_of(reference)
    pin = opening.secret(reference.pin_file, f"the PIN of {reference.signer}")
    refused: list[str] = []
    try:
        assert isinstance(public_key, SSlibKey)
        signer = HSMSigner.from_priv_key_uri(reference.signer, public_key, lambda _: pin())
    except (LibraryError, ValueError) as error:
        raise BadKey(f"{where}: the token can't be used: {error}") from error

    def act(payload: bytes) -> bytes:
        with _ONE:
            if refused:
                raise SigningFailed(refused[0], retryable=False, advice="Correct the PIN and start again.")
            try:
                with _named(library):
                    return bytes.fromhex(signer.sign(payload).signature)
            except (pkcs11.exceptions.PinIncorrect, pkcs11.exceptions.PinLocked) as error:
                refused.append(f"{where}: the token refused the PIN ({type(error).__name__})")
                raise SigningFailed(refused[0], retryable=False, advice="Correct the PIN.") from error
            except (pkcs11.exceptions.PKCS11Error, LibraryError, ValueError, RuntimeError, OSError) as error:
                raise SigningFailed(
                    f"{where}: the token did not sign: {error or type(error).__name__}"
                ) from error

    return Checked(public_key, act, where)
