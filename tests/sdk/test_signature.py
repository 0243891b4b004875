"""The signature of a bundle: every tampering is found, and every wrong key is named."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from trrg_sdk.bundle import Bundle
from trrg_sdk.cli import main
from trrg_sdk.errors import BundleError, UsageError
from trrg_sdk.signature import is_signed, verify

TINY = Path(__file__).parent / "tiny_bundle"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEM = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    path = tmp_path / "maker.pub"
    path.write_bytes(KEY.public_key().public_bytes(*PEM))
    return path


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(TINY, folder)
    (folder / "signature.ed25519").write_bytes(KEY.sign((folder / "manifest.json").read_bytes()))
    return folder


def test_a_signed_bundle_is_accepted(signed: Path, public: Path) -> None:
    bundle = Bundle.load(signed)
    assert is_signed(bundle)
    verify(bundle, public)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _flip_signature(folder: Path) -> None:
    flip(folder / "signature.ed25519", 300)


def _change_manifest(folder: Path) -> None:
    """As a forger would, with the hash beside it made right again."""
    path = folder / "manifest.json"
    text = path.read_text().replace("Tests only", "For all uses")
    path.write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json.sha256").write_text(f"{digest}  manifest.json\n")


def _cut(folder: Path) -> None:
    path = folder / "signature.ed25519"
    path.write_bytes(path.read_bytes()[:63])


def _lengthen(folder: Path) -> None:
    path = folder / "signature.ed25519"
    path.write_bytes(path.read_bytes() + b"\n")


def _remove(folder: Path) -> None:
    (folder / "signature.ed25519").unlink()


def _sign_with_another(folder: Path) -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    (folder / "signature.ed25519").write_bytes(other.sign((folder / "manifest.json").read_bytes()))


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (_flip_signature, "changed or signed with another key"),
        (_change_manifest, "changed or signed with another key"),
        (_sign_with_another, "changed or signed with another key"),
        (_cut, "expected 64 bytes, got 63"),
        (_lengthen, "expected 64 bytes, got 65"),
        (_remove, "no such file"),
    ],
)
def test_tampering_is_exit_4(
    signed: Path, public: Path, tamper: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(signed)
    assert main(["verify", str(signed), "--key", str(public)]) == 4
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_every_bit_of_the_signature_counts(signed: Path, public: Path) -> None:
    bundle = Bundle.load(signed)
    path = signed / "signature.ed25519"
    for bit in range(0, 512, 37):
        flip(path, bit)
        with pytest.raises(BundleError):
            verify(bundle, public)
        flip(path, bit)
    verify(bundle, public)


def test_a_manifest_that_changes_after_loading_is_found(signed: Path, public: Path) -> None:
    bundle = Bundle.load(signed)
    _change_manifest(signed)
    (signed / "signature.ed25519").write_bytes(KEY.sign((signed / "manifest.json").read_bytes()))
    with pytest.raises(BundleError, match="changed"):
        verify(bundle, public)


def test_a_changed_graph_is_found_by_its_hash(signed: Path, public: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(signed / "graphs" / "fusion.onnx", 4000)
    assert main(["verify", str(signed), "--key", str(public)]) == 4
    assert "graphs/fusion.onnx" in capsys.readouterr().err


def test_another_makers_key_is_refused(signed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pub"
    other.write_bytes(Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes(*PEM))
    with pytest.raises(BundleError, match="another key"):
        verify(Bundle.load(signed), other)


def test_a_key_of_another_type_is_refused(signed: Path, tmp_path: Path) -> None:
    elliptic = tmp_path / "elliptic.pub"
    elliptic.write_bytes(generate_private_key(SECP256R1()).public_key().public_bytes(*PEM))
    with pytest.raises(BundleError, match="expected an Ed25519 key"):
        verify(Bundle.load(signed), elliptic)


def _private(path: Path) -> None:
    path.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read"),
        (
            lambda path: path.write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
            "expected a public",
        ),
        (lambda path: path.write_bytes(bytes(32)), "expected a public"),
        (_private, "expected a public"),
    ],
)
def test_an_unreadable_key_is_exit_2(
    signed: Path, tmp_path: Path, write: Callable[[Path], object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "wrong.pub"
    write(key)
    assert main(["verify", str(signed), "--key", str(key)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_without_the_package_the_extra_is_named(signed: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(signed)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(UsageError, match=r"pip install 'trrg-sdk\[cpu,signature\]'"):
        verify(bundle, public)


def test_without_a_key_verify_says_that_it_did_not_look(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _flip_signature(signed)
    assert main(["verify", str(signed)]) == 0
    assert "signature there, not checked" in capsys.readouterr().out
    assert main(["verify", str(TINY)]) == 0
    assert "not signed" in capsys.readouterr().out


def test_openssl_agrees(signed: Path, public: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin"]
    command += ["-in", str(signed / "manifest.json"), "-sigfile", str(signed / "signature.ed25519")]
    assert subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
    _flip_signature(signed)
    assert subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode != 0
