"""Signing a bundle: Ed25519 over the bytes of its manifest, which hashes every other file (see trrg_sdk.signature).

    openssl genpkey -algorithm ed25519 -out site.key     # keep it off the machine that runs the bundle
    openssl pkey -in site.key -pubout -out site.pub      # what the sites get, by another way than the bundle

Ed25519 has no randomness in it: the same key and the same manifest give the same signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trrg_sdk.errors import UsageError
from trrg_sdk.manifest import MANIFEST_FILE, SIGNATURE_FILE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read the key to sign with.

    Args:
        path: An Ed25519 private key, PEM (PKCS8), not encrypted: a password could only be asked for at a terminal.

    Raises:
        UsageError: The file cannot be read, is no such key, or is encrypted, or the package ``cryptography`` is not
            installed.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise UsageError("--sign needs the package cryptography: pip install 'trrg-sdk[cpu,export]'") from error
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UsageError(f"--sign {path}: cannot be read ({error.strerror})") from error
    except TypeError as error:  # what cryptography raises for a key that wants a password
        raise UsageError(
            f"--sign {path}: the key is encrypted, a plain one is needed: `openssl pkey -in {path.name} -out PLAIN`, "
            "and remove PLAIN afterwards"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"--sign {path}: expected a private key in PEM (-----BEGIN PRIVATE KEY-----), got something else; "
            "`openssl genpkey -algorithm ed25519` makes one"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"--sign {path}: expected an Ed25519 key, got another type; `openssl genpkey -algorithm ed25519`"
        )
    return key


def sign_bundle(folder: Path, key: Ed25519PrivateKey) -> None:
    """Write ``signature.ed25519``, 64 bytes.

    Args:
        folder: A bundle with its manifest.
        key: From :func:`read_key`.
    """
    (folder / SIGNATURE_FILE).write_bytes(key.sign((folder / MANIFEST_FILE).read_bytes()))
