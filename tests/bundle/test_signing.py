"""Signatures, with OpenSSL's program as the other side."""

import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import BundleError, EdgeftError, UsageError
from edgeft.runtime.bundle import check_bundle, open_bundle, unpack_bundle
from tests.bundle.building import FILES, entry, manifest_of, write_folder, write_zip

pytest.importorskip("cryptography")
signing: Any = pytest.importorskip("edgeft.bundle.signing")
OPENSSL = shutil.which("openssl")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    signing.make_keys(tmp_path / "me.key", tmp_path / "me.pub")
    return tmp_path / "me.key", tmp_path / "me.pub"


def signed(path: Path, key: Path) -> Path:
    """A folder bundle signed with the key."""
    write_folder(path)
    (path / "bundle.json.sig").write_bytes(signing.sign((path / "bundle.json").read_bytes(), key))
    return path


def test_a_signed_bundle_opens_for_its_key(keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    bundle = signed(tmp_path / "bundle", private)
    check = signing.signed_by(public)
    assert check_bundle(bundle, check).name == "tiny"
    assert open_bundle(bundle, tmp_path / "cache", check).model.is_file()
    unpack_bundle(bundle, tmp_path / "out", check)
    assert check_bundle(tmp_path / "out", check).name == "tiny"


def refused(bundle: Path, check: Any, message: str, tmp_path: Path) -> None:
    for act in (
        lambda: check_bundle(bundle, check),
        lambda: open_bundle(bundle, tmp_path / "cache", check),
        lambda: unpack_bundle(bundle, tmp_path / "out", check),
    ):
        with pytest.raises(BundleError, match=message):
            act()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_the_key_did_not_sign_is_refused(keys: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    private, public = keys
    check = signing.signed_by(public)
    signing.make_keys(tmp_path / "other.key", tmp_path / "other.pub")
    other = {**FILES, "README.md": b"# evil\n"}

    def bundle(name: str, content: dict[str, bytes], signature: bytes | None) -> Path:
        import json
        import zipfile

        raw = json.dumps(manifest_of(content)).encode()
        if kind == "zip":
            path = write_zip(tmp_path / f"{name}.edgeft", content, raw)
            if signature is not None:
                with zipfile.ZipFile(path, "a") as packed:
                    packed.writestr(entry("bundle.json.sig"), signature)
            return path
        path = write_folder(tmp_path / name, content)
        if signature is not None:
            (path / "bundle.json.sig").write_bytes(signature)
        return path

    raw = (write_folder(tmp_path / "good") / "bundle.json").read_bytes()
    good = signing.sign(raw, private)
    refused(bundle("unsigned", FILES, None), check, "is not signed", tmp_path)
    refused(bundle("by another", FILES, signing.sign(raw, tmp_path / "other.key")), check, "is not one of", tmp_path)
    refused(bundle("of another", other, good), check, "is not one of", tmp_path)
    refused(bundle("zeros", FILES, bytes(64)), check, "is not one of", tmp_path)
    refused(bundle("flipped", FILES, bytes([good[0] ^ 1]) + good[1:]), check, "is not one of", tmp_path)


def test_a_file_changed_after_signing_is_refused(keys: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = signed(tmp_path / "bundle", keys[0])
    (bundle / "README.md").write_bytes(b"# evil\n")
    with pytest.raises(BundleError, match=r"content of README.md"):
        check_bundle(bundle, signing.signed_by(keys[1]))


@pytest.mark.skipif(OPENSSL is None, reason="no openssl here")
def test_openssl_accepts_our_signature_and_we_its(keys: tuple[Path, Path], tmp_path: Path) -> None:
    def openssl(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["openssl", *words], capture_output=True, cwd=tmp_path)

    bundle = signed(tmp_path / "bundle", keys[0])
    files = ("-rawin", "-in", "bundle/bundle.json", "-sigfile", "bundle/bundle.json.sig")
    assert openssl("pkeyutl", "-verify", "-pubin", "-inkey", "me.pub", *files).returncode == 0
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", "their.key").returncode == 0
    openssl("pkey", "-in", "their.key", "-pubout", "-out", "their.pub")
    assert openssl("pkeyutl", "-verify", "-pubin", "-inkey", "their.pub", *files).returncode != 0
    openssl(
        "pkeyutl", "-sign", "-inkey", "their.key", "-rawin", "-in", "bundle/bundle.json",
        "-out", "bundle/bundle.json.sig",
    )  # fmt: skip
    assert check_bundle(bundle, signing.signed_by(tmp_path / "their.pub")).name == "tiny"


@pytest.mark.skipif(OPENSSL is None, reason="no openssl here")
def test_other_keys_are_refused(keys: tuple[Path, Path], tmp_path: Path) -> None:
    subprocess.run(["openssl", "genpkey", "-algorithm", "x25519", "-out", tmp_path / "x.key"], check=True)
    subprocess.run(["openssl", "pkey", "-in", tmp_path / "x.key", "-pubout", "-out", tmp_path / "x.pub"], check=True)
    encrypt = ["openssl", "pkey", "-in", keys[0], "-aes256", "-passout", "pass:x", "-out", tmp_path / "locked.key"]
    subprocess.run(encrypt, check=True)
    (tmp_path / "text").write_text("no key")
    cases: list[tuple[Any, str, str]] = [
        (lambda path: signing.sign(b"", path), "x.key", "another kind than Ed25519"),
        (lambda path: signing.sign(b"", path), "locked.key", "is encrypted"),
        (lambda path: signing.sign(b"", path), "text", "not a private key"),
        (lambda path: signing.sign(b"", path), "missing", "cannot be read"),
        (lambda path: signing.sign(b"", path), "me.pub", "not a private key"),
        (signing.signed_by, "x.pub", "another kind than Ed25519"),
        (signing.signed_by, "text", "not a public key"),
        (signing.signed_by, "me.key", "not a public key"),
    ]
    for act, name, message in cases:
        with pytest.raises(UsageError, match=message):
            act(tmp_path / name)


def test_a_key_is_never_written_over(keys: tuple[Path, Path], tmp_path: Path) -> None:
    before = keys[0].read_bytes()
    with pytest.raises(UsageError, match="never written over"):
        signing.make_keys(*keys)
    assert keys[0].read_bytes() == before
    with pytest.raises(EdgeftError, match="no/such"):
        signing.make_keys(tmp_path / "no/such/me.key", tmp_path / "me2.pub")
