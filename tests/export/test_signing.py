"""``trrg-export --sign``: the key that is refused before anything is done, and the bundle that carries a signature."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from trrg_export.signing import read_key
from trrg_sdk.errors import UsageError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
Traced = Callable[[Callable[[str, Any], None]], None]


def private_pem(key: Any, *, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return pem


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "maker.key"
    path.write_bytes(private_pem(KEY))
    return path


def test_a_plain_key_is_read(key: Path) -> None:
    assert read_key(key).private_bytes_raw() == bytes(range(32))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (private_pem(KEY, password=b"secret"), "is encrypted"),
        (private_pem(generate_private_key(SECP256R1())), "expected an Ed25519 key"),
        (KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "expected a private key"),
        (b"no key at all", "expected a private key"),
        (None, "cannot be read"),
    ],
)
def test_a_key_that_cannot_sign_is_one_sentence(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "wrong.key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        read_key(path)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(UsageError, match=r"pip install 'trrg-sdk\[cpu,export\]'"):
        read_key(key)


@pytest.mark.torch
def test_a_signed_export_verifies(
    tiny_checkpoint: Path, tmp_path: Path, traced: Traced, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trrg_export.cli import main as export
    from trrg_sdk.cli import main as trrg

    public, out = tmp_path / "maker.pub", tmp_path / "bundle"
    public.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert export([str(tiny_checkpoint), "--out", str(out), "--sign", str(key)]) == 0
    assert (out / "signature.ed25519").read_bytes() == KEY.sign((out / "manifest.json").read_bytes())
    capsys.readouterr()
    assert trrg(["verify", str(out), "--key", str(public)]) == 0
    assert "signed by the holder of" in capsys.readouterr().out


@pytest.mark.torch
def test_a_wrong_key_stops_before_the_checkpoint_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime_genai")
    from trrg_export.cli import main

    arguments = [
        str(tmp_path / "no checkpoint"),
        "--out",
        str(tmp_path / "bundle"),
        "--sign",
        str(tmp_path / "none.key"),
    ]
    assert main(arguments) == 2
    assert "none.key: cannot be read" in capsys.readouterr().err
