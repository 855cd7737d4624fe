"""Answer questions and run programs over HTTP, for many clients at once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli._options import (
    PRETRAINED,
    GeneratorName,
    GeneratorOption,
    ModuleOption,
    ModulesOption,
    Seed,
    SetOption,
    SettingsFile,
    Single,
)
from tutelage.errors import InputError
from tutelage.serving import check_installed

app = typer.Typer()

KEY_VARIABLE = "TUTELAGE_SERVE_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@app.command(
    epilog="Example: tutelage serve --port 8000 --queue 64, then open http://127.0.0.1:8000. For photographs: tutelage serve "
    "--modules pretrained"
)
def serve(
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes any that is free.")] = 8000,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Clients must send the API key in this file; or set {KEY_VARIABLE}.")
    ] = None,
    batching: Annotated[bool, typer.Option(help="Batch the module calls of concurrent requests.")] = True,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="The time that a batch waits for other requests before it runs.")] = 5.0,
    max_batch: Annotated[int, typer.Option(min=1, help="The maximum number of calls in a batch.")] = 64,
    queue: Annotated[int, typer.Option(min=1, help="Programs that wait or run; further clients get 429 and Retry-After.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.01, help="The maximum seconds for one request.")] = 60.0,
    grace: Annotated[float, typer.Option(min=1, help="Seconds to finish accepted requests when the server stops.")] = 30.0,
    body_mib: Annotated[float, typer.Option(min=0.01, help="The maximum MiB of one request.")] = 32.0,
    body_kib_s: Annotated[float, typer.Option(min=0.01, help="The minimum KiB per second at which a request body arrives.")] = 32.0,
    image_mib: Annotated[float, typer.Option(min=0.01, help="The maximum MiB of one image file.")] = 16.0,
    image_pixels: Annotated[int, typer.Option(min=1, help="The maximum pixels of one image, read from its header.")] = 25_000_000,
    longest_side: Annotated[int, typer.Option(min=0, help="Longest side in pixels; larger images are reduced; 0: none.")] = 2048,
    memory_mib: Annotated[int, typer.Option(min=1, help="The maximum MiB of request bodies and decoded images in memory.")] = 1024,
    program_seconds: Annotated[float, typer.Option(min=0.01, help="The maximum processor seconds of one program itself.")] = 1.0,
    program_calls: Annotated[int, typer.Option(min=1, help="The maximum number of module calls of one program.")] = 200,
    cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Store module outputs in this file, for later requests and runs.")
    ] = None,
    single: Single = False,
    generator: GeneratorOption = GeneratorName.grammar,
    settings: SettingsFile = None,
    changes: SetOption = None,
    modules: ModulesOption = None,
    module: ModuleOption = None,
    seed: Seed = 0,
) -> None:
    """Serve solve, run and batch over HTTP, with a page to try them; concurrent requests share batches of module calls.

    ViperGPT programs run in a sandbox. Each request writes one line of JSON to standard error. On SIGTERM or Ctrl-C the
    server finishes accepted requests and stops.
    """
    key = _key(key_file)
    check_installed()
    from tutelage.cli import _generators
    from tutelage.cli._modules import load_modules
    from tutelage.programs.result_cache import ResultCache
    from tutelage.serving.app import application
    from tutelage.serving.sample_images import photograph, scene
    from tutelage.serving.server import log_to_stderr
    from tutelage.serving.server import serve as run_server
    from tutelage.serving.settings import ServerSettings

    limits = ServerSettings(
        batching=batching,
        max_wait_ms=max_wait_ms,
        max_batch=max_batch,
        queue=queue,
        memory_mib=memory_mib,
        timeout_s=timeout,
        grace_s=grace,
        body_mib=body_mib,
        body_kib_s=body_kib_s,
        image_mib=image_mib,
        image_pixels=image_pixels,
        longest_side=longest_side,
        program_seconds=program_seconds,
        program_calls=program_calls,
    )
    photos = modules == PRETRAINED
    file = _generators.with_image_mode(_generators.read_settings(settings, changes or ()), single, photos)
    context = _generators.GeneratorContext(file, [], _generators.signatures_of(modules, module or ()), seed)
    writer = _generators.make_generator(generator, context)
    loaded = load_modules(modules, seed, module or ())
    log_to_stderr()
    if host not in LOOPBACK and key is None:
        typer.echo(f"warning: anyone who reaches {host} can send requests; --key-file or {KEY_VARIABLE} sets an API key", err=True)
    with ResultCache(cache) if cache is not None else contextlib.nullcontext() as results:
        served = application(loaded, writer, limits, key=key, cache=results, sample=photograph if photos else scene)
        run_server(served, limits, host, port, lambda url: typer.echo(f"tutelage serves at {url}"))
    typer.echo("stopped; all accepted requests are answered")


def _key(file: Path | None) -> str | None:
    """The API key: the file's first line, else the environment's; None where neither is given.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InputError("cannot read the key", where=file, remedy="give a text file that holds the key alone") from error
    if not key or any(character.isspace() or not character.isascii() for character in key):
        raise InputError("no key, or one with blanks", where=file, remedy="give a text file that holds the key alone")
    return key
