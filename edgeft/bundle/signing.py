"""Ed25519 signatures of bundles (RFC 8032), made and checked by the library `cryptography`.

What is signed is bundle.json, byte for byte; it holds the sha256 of every other file. Key files are PEM as OpenSSL
writes them, and a signature can be checked without edgeft:
`openssl pkeyutl -verify -pubin -inkey KEY.pub -rawin -in bundle.json -sigfile bundle.json.sig`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgeft.artifact import refused_writes, write_refused
from edgeft.errors import BundleError, UsageError
from edgeft.extras import extra_needed
from edgeft.runtime.bundle_manifest import MANIFEST, Manifest, SignatureCheck

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def make_keys(private: Path, public: Path) -> None:
    """Write a new key pair; only the owner may read `private`. Raises UsageError when one of the files exists."""
    for path in (private, public):
        if path.exists():
            raise UsageError(f"{path}: is there already; a key is never written over")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
    with extra_needed("sign"):
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    key = Ed25519PrivateKey.generate()
    pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    _write_new(private, 0o600, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password))
    subject = serialization.PublicFormat.SubjectPublicKeyInfo
    _write_new(public, 0o644, key.public_key().public_bytes(pem, subject))


def sign(manifest: bytes, private: Path) -> bytes:
    """The signature (64 bytes) of the manifest's bytes. Raises UsageError when the file is no such key."""
    return _private_key(private).sign(manifest)


def signed_by(public: Path) -> SignatureCheck:
    """What `open_bundle`, `check_bundle` and `unpack_bundle` take to refuse what this key did not sign."""
    key = _public_key(public)

    def check(path: Path, manifest: Manifest, signature: bytes | None) -> None:
        from cryptography.exceptions import InvalidSignature

        if signature is None:
            raise BundleError(
                f"{path}: is not signed, and a signature by {public} is asked for; do not use this bundle"
            )
        try:
            key.verify(signature, manifest.raw)
        except InvalidSignature:
            raise BundleError(
                f"{path}: its signature is not one of {MANIFEST} by {public}; do not use this bundle"
            ) from None

    return check


def _private_key(path: Path) -> "Ed25519PrivateKey":
    with extra_needed("sign"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    try:
        key = load_pem_private_key(_read(path), password=None)
    except TypeError:
        raise UsageError(f"{path}: the key is encrypted; decrypt it first (openssl pkey -in KEY -out PLAIN)") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path}: not a private key in PEM; make one with `edgeft keygen NAME`") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: a private key of another kind than Ed25519; make one with `edgeft keygen NAME`")
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    with extra_needed("sign"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path}: not a public key in PEM; give the .pub file of `edgeft keygen`") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: a public key of another kind than Ed25519; give the .pub file of `edgeft keygen`")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: the key cannot be read ({error.strerror})") from None


def _write_new(path: Path, mode: int, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise write_refused(error, path) from None
    with refused_writes(path), os.fdopen(descriptor, "wb") as file:
        file.write(content)
