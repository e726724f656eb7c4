"""The gateway's own key, made on the truck, which never leaves it: what vehicle manifests are signed with.

`DATA/manifest-key.pem` (0600) and its public half `DATA/manifest-key.pub.pem`, which the office's inventory
holds. A damaged key is not replaced by itself: the office would refuse whatever a new one signs.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from securesystemslib.signer import CryptoSigner

from edge_agent.safe_files import read_bounded, write_whole
from shared.errors import ConfigError
from shared.logs import get_log
from shared.trust.keys import BadKey, load_signer, new_key

log = get_log("edge_agent.manifest_key")

PRIVATE, PUBLIC = "manifest-key.pem", "manifest-key.pub.pem"
MOST_KEY_BYTES = 16 * 1024


def load_or_make_key(data_dir: Path) -> CryptoSigner:
    """The gateway's signer; made when there is none. Blocks.

    Raises ConfigError for a key that is damaged or that others can read, OSError when none can be written.
    """
    return load_signer(_load_or_make(data_dir))


def public_key_pem(data_dir: Path) -> str:
    """Its public half for the office, PEM; the key is made when there is none. Blocks. Raises as above."""
    private = serialization.load_pem_private_key(_load_or_make(data_dir), None)
    return (
        private.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def _load_or_make(data_dir: Path) -> bytes:
    path = data_dir / PRIVATE
    try:
        raw = read_bounded(path, MOST_KEY_BYTES)
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"{path} can be read by others",
                advice=f"Remove it if somebody may have read it, else run chmod 600 {path}.",
            )
        load_signer(raw)
        return raw
    except FileNotFoundError:
        pass
    except (OSError, ValueError, BadKey) as error:
        raise ConfigError(
            f"{path} can't be used: {error}",
            advice="Remove it; a new key is made, and the office must be told its public half.",
        ) from error
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    private, public = new_key()
    # The public half first: whoever finds a private one finds its public half.
    write_whole(data_dir / PUBLIC, public, mode=0o644)
    write_whole(path, private)
    signer = load_signer(private)
    log.info("manifest.key_made", keyid=signer.public_key.keyid, public=str(data_dir / PUBLIC))
    return private
