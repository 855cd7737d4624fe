"""Answer questions and run programs over HTTP, for many clients at once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli._generators import GeneratorName, GeneratorOption, SetOption, SettingsFile
from tutelage.cli._programs import SETS, ModuleOption, ModuleSet, Seed, modules_of
from tutelage.errors import InputError
from tutelage.serving import check_installed

app = typer.Typer()

KEY_VARIABLE = "TUTELAGE_SERVE_KEY"
NEARBY = ("127.0.0.1", "::1", "localhost")


@app.command(
    epilog="Example: tutelage serve --port 8000 --queue 64, then open http://127.0.0.1:8000. For photographs: tutelage serve "
    "--models packaged"
)
def serve(
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Clients must send the API key in this file; or set {KEY_VARIABLE}.")
    ] = None,
    batching: Annotated[bool, typer.Option(help="Answer the module calls of all requests under way together.")] = True,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="A batch that is not full waits at most so long for other requests.")
    ] = 5.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Calls a batch, at most.")] = 64,
    queue: Annotated[int, typer.Option(min=1, help="Programs that wait or run; beyond it clients are told to come back.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds for one request.")] = 60.0,
    grace: Annotated[float, typer.Option(min=1, help="Seconds for what was accepted, when the server is told to stop.")] = 30.0,
    body_mib: Annotated[float, typer.Option(min=0.01, help="MiB of one request.")] = 32.0,
    body_kib_s: Annotated[float, typer.Option(min=0.01, help="KiB a second that a request's body comes at, at least.")] = 32.0,
    image_mib: Annotated[float, typer.Option(min=0.01, help="MiB of one picture's file.")] = 16.0,
    image_pixels: Annotated[int, typer.Option(min=1, help="Pixels of one picture, as its header says.")] = 25_000_000,
    longest_side: Annotated[int, typer.Option(min=0, help="Reduce larger pictures to so many pixels; 0: leave them.")] = 2048,
    memory_mib: Annotated[int, typer.Option(min=1, help="MiB of bodies and decoded pictures held at once.")] = 1024,
    program_seconds: Annotated[float, typer.Option(min=0.01, help="Processor seconds of one program itself.")] = 1.0,
    program_calls: Annotated[int, typer.Option(min=1, help="Calls of one program to modules.")] = 200,
    cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep module answers here, for later requests and runs.")
    ] = None,
    single: Annotated[bool, typer.Option("--single", help="Every picture shows one thing, and is asked about whole.")] = False,
    writer: GeneratorOption = GeneratorName.grammar,
    settings: SettingsFile = None,
    changes: SetOption = None,
    models: Annotated[ModuleSet, typer.Option(help=SETS)] = ModuleSet.embedded,
    module: ModuleOption = None,
    seed: Seed = 0,
) -> None:
    """Serve solve, run and batch over HTTP, with a page to try them; the module calls of all requests meet in one batch.

    ViperGPT programs run in a sandbox. A line of JSON a request goes to standard error. SIGTERM or Ctrl-C: what was accepted
    is finished.
    """
    key = _key(key_file)
    check_installed()
    from tutelage.cli import _generators
    from tutelage.programs.result_cache import ResultCache
    from tutelage.serving.app import application
    from tutelage.serving.sample_images import photograph, scene
    from tutelage.serving.server import log_to_stderr
    from tutelage.serving.server import serve as serve_until_told
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
    packaged = models is ModuleSet.packaged
    parts = _generators.with_image_mode(_generators.read_settings(settings, changes or ()), single, packaged)
    made = _generators.make_generator(
        writer, _generators.GeneratorContext(parts, [], _generators.signatures_of(module or (), packaged), seed)
    )
    modules = modules_of(seed, module or (), models)
    log_to_stderr()
    if host not in NEARBY and key is None:
        typer.echo(f"warning: anyone who reaches {host} may ask; --key-file or {KEY_VARIABLE} sets an API key", err=True)
    with ResultCache(cache) if cache is not None else contextlib.nullcontext() as results:
        served = application(modules, made, limits, key=key, cache=results, sample=photograph if packaged else scene)
        serve_until_told(served, limits, host, port, lambda url: typer.echo(f"tutelage serves at {url}"))
    typer.echo("stopped; what was accepted is answered")


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
