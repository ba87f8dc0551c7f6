"""`mmbert serve`: search an index from a web page, and from programs over HTTP."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmbert.cli.common import DeviceOption, Int8Option, counted, int8_if_faster, load_model, note
from mmbert.errors import UsageError
from mmbert.plugins import need_packages

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert

BACKENDS = ("torch", "onnx", "openvino")


def serve(
    index: Annotated[str, typer.Option("--index", "-i", help="Folder or URI of the index.")] = "mmbert-index",
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for everybody.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help="Port.", min=0, max=65535)] = 8000,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model that made the index. Default: the one it names.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            help="A further model, for what the index's cannot; QUESTION=MODEL: for that alone. Repeatable.",
        ),
    ] = None,
    rerank: Annotated[int, typer.Option("--rerank", help="Re-ranking that the page asks for.", min=0, max=200)] = 30,
    batch: Annotated[int, typer.Option("--batch", help="Requests computed together; 1: none.", min=1)] = 64,
    queue: Annotated[int, typer.Option("--queue", help="Requests that may wait; more get 429.", min=1)] = 256,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until a request is given up.", min=0.1)] = 30.0,
    max_bytes: Annotated[int, typer.Option("--max-bytes", help="Largest request.", min=1000)] = 20_000_000,
    max_pixels: Annotated[int, typer.Option("--max-pixels", help="Largest image sent.", min=1000)] = 40_000_000,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="File of API keys; without it none are asked for.")
    ] = None,
    new_key: Annotated[str | None, typer.Option("--new-key", help="Add a key to --keys, print it, and stop.")] = None,
    cors: Annotated[list[str] | None, typer.Option("--cors", help="Origin whose pages may use it; repeatable.")] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", help="What computes: torch, onnx, openvino. Default: what --model was made for."),
    ] = None,
    device: DeviceOption = None,
    int8: Int8Option = False,
) -> None:
    """Search an index from a web page, and from programs over HTTP.

    The page is on /, the interface below /v1 is described in /openapi.json; /healthz, /readyz and /metrics are for
    whoever runs it. Only images of the index are given out. Ctrl-C or SIGTERM finishes what is under way and stops.

    Examples:

      mmbert serve
      mmbert serve --index photos-index --port 9000
      mmbert serve --also runs/vqa/best --also caption=runs/captions/best --also translate=runs/en-de/best
      mmbert serve --backend onnx --model exported
      mmbert serve --keys keys.json --new-key alice && mmbert serve --host 0.0.0.0 --keys keys.json
    """
    if new_key is not None:
        if keys is None:
            raise UsageError("where is the key to be kept?", hint="add --keys FILE")
        from mmbert.search.service.keys import new_key as make

        print(make(keys, new_key))
        note(f"its hash is in {keys}; the key itself is kept nowhere")
        return
    need_packages("serve", "uvicorn", "fastapi")
    import uvicorn

    from mmbert.search.index import SearchIndex
    from mmbert.search.service.app import make_app
    from mmbert.search.service.core import Service, Settings
    from mmbert.search.service.keys import read_keys
    from mmbert.search.service.offers import Further, read_further

    known = {} if keys is None else read_keys(keys)
    named = [read_further(said) for said in also or ()]
    with listening(host, port) as held:
        opened = SearchIndex.open(index)
        name = model or opened.about.model
        if name is None:
            raise UsageError("the index does not say which model made it", where=index, hint="add --model")
        if backend in (None, "torch"):  # others refuse it
            int8 = int8_if_faster(int8)  # told once, however many models there are
        note(f"loading {', '.join([name, *(path for _, path in named)])}")
        opened = SearchIndex.open(index, load_served(name, backend, device, int8=int8))
        further = [Further(load_model(path, device, int8=int8), questions) for questions, path in named]
        settings = Settings(batch, queue, timeout, max_bytes, max_pixels, known, tuple(cors or ()), rerank)
        service = Service(opened, settings, further)
        service.warm_up()
        for one in further:
            questions = ", ".join(offer.name for offer in service.offers if offer.model is one.model)
            note(f"{one.model.name_or_path} answers {questions}")
        note(f"{counted(service.images, 'image')}; http://{host}:{held.getsockname()[1]}/ (Ctrl-C stops)")
        config = uvicorn.Config(
            make_app(service), host, port, log_level="warning", timeout_graceful_shutdown=round(timeout) + 5
        )
        uvicorn.Server(config).run(sockets=[held])


def listening(host: str, port: int) -> socket.socket:
    """A socket that holds the address, so that one that is taken is said before a model is loaded.

    Raises:
        UsageError: it cannot be had.
    """
    made = None
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        if made is not None:
            made.close()
        hint = "is something else using the port? give another --port"
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}", hint=hint) from error
    return made


def load_served(name: str, backend: str | None, device: str | None, *, int8: bool = False) -> MMBert:
    """Load the model that a service computes with; a PyTorch model for another backend is exported in passing.

    Args:
        name: a model, or a folder of ``mmbert export``.
        backend: one of ``BACKENDS``; None: graphs where ``name`` is such a folder, else PyTorch.
        device: where PyTorch computes.
        int8: let PyTorch multiply in 8 bits.

    Raises:
        UsageError: an unknown backend, a folder of another one, or one that has no say in ``int8``.
    """
    from mmbert.api.export_folder import is_exported

    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}", hint=f"one of: {', '.join(BACKENDS)}")
    if backend in (None, "torch") or is_exported(name):
        model = load_model(name, device, int8=int8)
        made_for = getattr(model, "backend", "torch")
        if backend not in (None, made_for):
            raise UsageError(
                f"{name} was made for {made_for}, not for {backend}",
                hint=f"leave --backend out, or give the model itself: {getattr(model, 'source', name)}",
            )
        return model
    from mmbert.api.export import exported_in_passing

    if int8:
        raise UsageError(f"--int8 is for PyTorch, not for {backend}", hint="mmbert export --int8, and serve its folder")
    if device not in (None, "cpu"):
        raise UsageError(f"{backend} computes on the CPU, not on {device}", hint="leave --device out")
    note(f"exporting {name} to {backend}; mmbert export keeps the result, and can make it faster (--int8)")
    return exported_in_passing(load_model(name, "cpu"), str(backend))
