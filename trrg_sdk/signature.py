"""Who vouches for a bundle: an Ed25519 signature (RFC 8032) over the bytes of its manifest.

``signature.ed25519`` holds the 64 bytes of the signature and nothing else, so that ``openssl pkeyutl -verify -pubin
-inkey PUB -rawin -in manifest.json -sigfile signature.ed25519`` checks it too. The manifest hashes every other file, so
the signature covers the whole bundle. The hashes find damage; only this finds a forgery, and only with a public key
that came to the site another way than the bundle did.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trrg_sdk.bundle import Bundle, sha256_bytes
from trrg_sdk.errors import BundleError, UsageError
from trrg_sdk.manifest import MANIFEST_FILE, SIGNATURE_FILE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_BYTES = 64
_NO_TRUST = "Do not use it; get the bundle again from its maker"


def is_signed(bundle: Bundle) -> bool:
    """Tell whether a bundle holds a signature, whatever it is worth."""
    return (bundle.folder / SIGNATURE_FILE).is_file()


def verify(bundle: Bundle, key: Path) -> None:
    """Check that the holder of a key signed a bundle.

    Args:
        bundle: As loaded, with its hashes verified.
        key: PEM file of the maker's Ed25519 public key.

    Raises:
        BundleError: There is no signature, it has another length, it is not of this key and this manifest, or the key
            is of another type than the signature.
        UsageError: The key file cannot be read, or the package ``cryptography`` is not installed.
    """
    public = _public_key(key)
    path = bundle.folder / SIGNATURE_FILE
    if not is_signed(bundle):
        raise BundleError(
            f"{bundle.folder}: expected a signature in {SIGNATURE_FILE}, got no such file. "
            "Get the signed bundle from its maker, or verify without a key"
        )
    try:
        signature = path.read_bytes()
        manifest = (bundle.folder / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    if len(signature) != SIGNATURE_BYTES:
        raise BundleError(
            f"{SIGNATURE_FILE}: expected {SIGNATURE_BYTES} bytes, got {len(signature)}: it is cut off or of another "
            f"kind. {_NO_TRUST}."
        )
    # The manifest that was loaded and the one that is checked must be the same.
    if sha256_bytes(manifest) != bundle.manifest_sha256 or not _is_of(public, signature, manifest):
        raise BundleError(
            f"{SIGNATURE_FILE}: expected a signature of {MANIFEST_FILE} by the holder of {key}, got another: the "
            f"bundle was changed or signed with another key. {_NO_TRUST}."
        )


def _is_of(public: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise UsageError(
            "checking a signature needs the package cryptography: pip install 'trrg-sdk[cpu,signature]'"
        ) from error
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--key {path}: cannot be read ({error.strerror}); name the maker's public key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"--key {path}: expected a public key in PEM (-----BEGIN PUBLIC KEY-----), got something else; "
            "`openssl pkey -in PRIVATE -pubout -out PUB` makes one"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"--key {path}: expected an Ed25519 key, got another type; bundles are signed with Ed25519")
    return key
