"""A bundle on disk: load it whole and unchanged, or raise.

A bundle is a folder. ``manifest.json`` lists every other file with its size and sha256, and
``manifest.json.sha256`` (the format of the ``sha256sum`` command) covers the manifest itself, so that a
flipped bit in any file is refused. A file that the manifest does not list is refused as well, hidden
ones included, because nobody vouches for it; so is a symbolic link, because what it points to can
change. This finds damage and mix-ups; only a signature finds a forgery. A bundle is loaded whether it is signed
or not, and a signature is not looked at: a site that trusts signed bundles alone calls
:func:`trrg_sdk.signature.verify` (``trrg verify --key``) first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import BundleError
from trrg_sdk.manifest import (
    DIGEST_FILE,
    ENGINES,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    ArraySpec,
    Axes,
    FileSpec,
    Manifest,
    TensorSpec,
    parse_manifest,
)

_OWN_FILES = frozenset({MANIFEST_FILE, DIGEST_FILE, SIGNATURE_FILE})
_REMEDY = "Restore the bundle from its source or export it again"


@dataclass(frozen=True, slots=True)
class ClueBank:
    """The embeddings of the bundled clues' prompts.

    Attributes:
        positive: float32 (clues, De), unit norm, one row per clue of the manifest, in its order.
        negative: float32 (clues, De), unit norm.
    """

    positive: NDArray[np.float32]
    negative: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files were all present, complete and unchanged when it was loaded.

    Attributes:
        folder: Where it lies.
        manifest: What it says about itself.
        manifest_sha256: Hash of ``manifest.json``, 64 hex digits; it stands for the whole content.
    """

    folder: Path
    manifest: Manifest
    manifest_sha256: str

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Self:
        """Open a bundle.

        Args:
            path: Its folder.
            verify: Hash every file (about 1 ms per MB). Without it only the manifest's own hash, the set
                of files and their sizes are checked.

        Raises:
            BundleError: A file is missing, unlisted, changed or a link, or the manifest is not what this SDK reads.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(f"{folder}: expected the folder of a bundle, got no folder. Check the path.")
        text, digest = _read_manifest(folder)
        manifest = parse_manifest(text)
        _check_files(folder, manifest, verify=verify)
        return cls(folder=folder, manifest=manifest, manifest_sha256=digest)

    @classmethod
    def embedded(cls) -> Self:
        """Open the default bundle that the package brings.

        Raises:
            BundleError: The package was installed without it, or a file of it changed.
        """
        return cls.load(Path(__file__).parent / "bundles" / "mini")

    @property
    def preprocess(self) -> dict[str, object]:
        """The parameters of ``trrg_sdk.preprocess.Preprocess``, as the manifest holds them."""
        return dict(self.manifest.preprocess)

    def path(self, name: str) -> Path:
        """Return the path of a graph.

        Args:
            name: ``"vision"``, ``"clue_encoder"``, ``"fusion"`` or ``"decoder"``.

        Raises:
            KeyError: The name is none of them.
        """
        return self.folder / self.manifest.graphs[name].file

    @property
    def tokenizer_path(self) -> Path:
        """The path of ``tokenizer.json``."""
        return self.folder / self.manifest.tokenizer.file

    def token_embedding(self) -> NDArray[Any]:
        """Map the token embedding table into memory, read-only.

        Returns:
            (vocab_size, Dl) in the dtype that the manifest names.

        Raises:
            BundleError: The file is no ``.npy`` array of that dtype and shape.
        """
        return self.array(self.manifest.token_embedding)

    def array(self, spec: ArraySpec) -> NDArray[Any]:
        """Map a ``.npy`` array into memory, read-only.

        Args:
            spec: One of the manifest's.

        Raises:
            BundleError: The file is no such array of that dtype and shape.
        """
        try:
            array = np.load(self.folder / spec.file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _unreadable(spec.file, error) from error
        return _check_array(spec.file, array, spec.dtype, spec.axes)

    def clue_bank(self) -> ClueBank:
        """Read the embeddings of the bundled clues.

        Raises:
            BundleError: The file is no ``.npz`` with the arrays ``positive`` and ``negative`` of the manifest's dtype
                and shape.
        """
        spec = self.manifest.clue_bank
        axes = (len(self.manifest.clues), *spec.axes[1:])
        try:
            with np.load(self.folder / spec.file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in ("positive", "negative")}
        except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
            raise _unreadable(spec.file, error) from error
        checked = {
            name: _check_array(f"{spec.file} ({name})", array, spec.dtype, axes) for name, array in arrays.items()
        }
        return ClueBank(**checked)

    def check_graph_specs(
        self, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, target: str = ""
    ) -> None:
        """Compare the tensors of an opened graph with the manifest's.

        An axis that the graph fixes must be the manifest's; what an axis that it leaves free is called is not compared.

        Args:
            name: The graph, for example ``"vision"``.
            inputs: What the runtime says about the opened graph's inputs.
            outputs: The same of its outputs.
            target: Compare with the form that this target runs, where it has one of its own.

        Raises:
            BundleError: Anything differs; the message lists all of it.
        """
        spec = self.manifest.graph(name, target=target)
        differences = [
            *_spec_differences("input", spec.inputs, inputs),
            *_spec_differences("output", spec.outputs, outputs),
        ]
        if differences:
            raise BundleError(f"{spec.file} is not what {MANIFEST_FILE} says: {'; '.join(differences)}. {_REMEDY}.")


def sha256_file(path: Path) -> str:
    """Hash a file.

    Args:
        path: A regular file; it is read in chunks.

    Returns:
        64 lower-case hex digits.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hash bytes: 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> Manifest:
    """Make a folder a bundle: hash its files, write the manifest's own hash, and the manifest last.

    Args:
        folder: Holds every other file of the bundle already.
        manifest: Complete but for ``files``, which is replaced.

    Returns:
        The manifest as written.

    Raises:
        BundleError: The folder holds a link or lacks a file that the manifest refers to, or the manifest cannot be
            read back to the same value.
    """
    root = Path(folder)
    files = {name: _described(root, name) for name in sorted(_walk(root).keys() - _OWN_FILES)}
    complete = dataclasses.replace(manifest, files=files)
    _check_references(complete)
    text = complete.to_json()
    if parse_manifest(text) != complete:
        raise BundleError(f"{MANIFEST_FILE}: what was written does not read back equal. Use plain JSON values only.")
    digest = hashlib.sha256(text.encode()).hexdigest()
    _write_atomically(root / DIGEST_FILE, f"{digest}  {MANIFEST_FILE}\n")
    _write_atomically(root / MANIFEST_FILE, text)
    return complete


def _described(root: Path, name: str) -> FileSpec:
    size, digest = (root / name).stat().st_size, sha256_file(root / name)
    return FileSpec(bytes=size, sha256=digest, reproducible=not name.startswith(f"{ENGINES}/"))


def _read_manifest(folder: Path) -> tuple[str, str]:
    """Return the manifest's text and hash after comparing it with its companion."""
    for name in (MANIFEST_FILE, DIGEST_FILE):
        if not (folder / name).is_file():
            raise BundleError(f"{folder}: expected a bundle with {name}, got none. Check the path, or export again.")
    try:
        data = (folder / MANIFEST_FILE).read_bytes()
        expected = (folder / DIGEST_FILE).read_bytes()
    except OSError as error:
        raise _unreadable(MANIFEST_FILE, error) from error
    digest = hashlib.sha256(data).hexdigest()
    if not hmac.compare_digest(expected, f"{digest}  {MANIFEST_FILE}\n".encode()):
        raise BundleError(
            f"{MANIFEST_FILE}: expected the sha256 that {DIGEST_FILE} holds, got {digest}: one of the two was changed. "
            f"{_REMEDY}."
        )
    try:
        return data.decode("utf-8"), digest
    except UnicodeDecodeError as error:
        raise _unreadable(MANIFEST_FILE, error) from error


def _walk(folder: Path) -> dict[str, int]:
    """Map every file below the folder to its size; refuse links and special files."""
    found: dict[str, int] = {}
    pending = [("", folder)]
    while pending:
        prefix, current = pending.pop()
        with os.scandir(current) as entries:
            for entry in entries:
                name = prefix + entry.name
                state = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(state.st_mode):
                    pending.append((f"{name}/", Path(entry.path)))
                elif stat.S_ISREG(state.st_mode):
                    found[name] = state.st_size
                else:
                    raise BundleError(f"{name}: expected a regular file, got a link or special file. {_REMEDY}.")
    return found


def _check_files(folder: Path, manifest: Manifest, *, verify: bool) -> None:
    """Compare the folder with the manifest's list of files, sizes and hashes; name every difference."""
    _check_references(manifest)
    try:
        found = _walk(folder)
        problems = [f"{name}: expected, got no such file" for name in sorted(manifest.files.keys() - found.keys())]
        extra = sorted(found.keys() - manifest.files.keys() - _OWN_FILES)
        problems += [f"{name}: in the folder, but {MANIFEST_FILE} does not list it (remove it)" for name in extra]
        problems += [
            f"{name}: expected {spec.bytes} bytes, got {found[name]}"
            for name, spec in manifest.files.items()
            if name in found and found[name] != spec.bytes
        ]
        if verify and not problems:
            problems = _changed_files(folder, manifest)
    except OSError as error:
        raise _unreadable(str(error.filename or folder), error) from error
    if problems:
        raise BundleError(f"The bundle {folder} is not what it was made as: {'; '.join(problems)}. {_REMEDY}.")


def _changed_files(folder: Path, manifest: Manifest) -> list[str]:
    """Hash every file; one thread, because a second one measured no faster on two cores."""
    digests = {name: sha256_file(folder / name) for name in manifest.files}
    return [
        f"{name}: expected sha256 {spec.sha256}, got {digests[name]}"
        for name, spec in manifest.files.items()
        if digests[name] != spec.sha256
    ]


def _check_references(manifest: Manifest) -> None:
    """Refuse a manifest that refers to a file which it does not list."""
    missing = sorted(set(manifest.referenced_files()) - manifest.files.keys())
    if missing:
        raise BundleError(f"{MANIFEST_FILE}: files: expected {missing} to be listed, got no such entry. {_REMEDY}.")


def _check_array(label: str, array: NDArray[Any], dtype: str, axes: Axes) -> NDArray[Any]:
    """Compare an array with the dtype and the axes of its specification."""
    if str(array.dtype) != dtype or array.shape != axes:
        got = f"{array.dtype} {array.shape}"
        raise BundleError(f"{label}: expected {dtype} {axes} as {MANIFEST_FILE} says, got {got}. {_REMEDY}.")
    return array


def _spec_differences(kind: str, expected: Sequence[TensorSpec], got: Sequence[TensorSpec]) -> list[str]:
    """Say in words how the tensors of a graph differ from the manifest's."""
    wanted, present = {spec.name: spec for spec in expected}, {spec.name: spec for spec in got}
    differences = [f"{kind} {name!r} is missing" for name in wanted if name not in present]
    differences += [f"{kind} {name!r} is unknown" for name in present if name not in wanted]
    for name in wanted.keys() & present.keys():
        ours, theirs = wanted[name], present[name]
        if ours.dtype != theirs.dtype or not _axes_agree(ours.axes, theirs.axes):
            differences.append(f"{kind} {name!r}: expected {ours.dtype} {ours.axes}, got {theirs.dtype} {theirs.axes}")
    return sorted(differences)


def _axes_agree(expected: Axes, got: Axes) -> bool:
    """Tell whether the ranks are equal, and every axis that the graph fixes is what the manifest says."""
    return len(expected) == len(got) and all(
        isinstance(theirs, str) or ours == theirs for ours, theirs in zip(expected, got, strict=True)
    )


def _unreadable(name: str, error: Exception) -> BundleError:
    return BundleError(f"{name}: cannot be read ({type(error).__name__}: {error}). {_REMEDY}.")


def _write_atomically(path: Path, text: str) -> None:
    """Write a file so that after a crash it is either whole or absent."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    if os.name == "posix":  # a renamed file survives a crash only when its folder is synced too
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
