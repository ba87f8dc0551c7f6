"""The service over HTTP: a FastAPI app around a ``Service``; the web page on ``/``.

Every failure a client can cause is a 4xx with ``{"error": {"message", "hint"}}``; 429 and 503 say when to come again.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from mmbert import __version__
from mmbert.errors import IndexStoreError, MMBertError, said_by_check
from mmbert.search.service import schemas
from mmbert.search.service.batching import Closing, Overloaded, TooLate
from mmbert.search.service.core import Service, image_bytes, quiet
from mmbert.search.service.keys import owner, sent_key
from mmbert.search.service.offers import name_of_model
from mmbert.search.service.uploads import BodyLimit, media_type, thumbnail

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("page", "service", "look", "ask", "translate")
    },
}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Failure, "description": what}
    for status, what in {
        400: "The request makes no sense.",
        401: "An API key is needed, or the one that was sent is wrong.",
        404: "There is no such image.",
        413: "The request is too large.",
        422: "The request has not the form that it should have.",
        429: "Too many requests are waiting; Retry-After says when to come again.",
        503: "The service is shutting down.",
        504: "There was no answer in time.",
    }.items()
}
HOW = "send a JSON object in UTF-8 with the header Content-Type: application/json; /openapi.json has its fields"
log = logging.getLogger("mmbert.service")


def make_app(service: Service) -> FastAPI:
    """The app; closing it finishes what is under way."""
    quiet()

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.ready = True
        yield
        app.state.ready = False
        await to_thread.run_sync(service.batcher.close)

    # The interactive documentation would load scripts from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(
        title="mm-bert", version=__version__, lifespan=life, docs_url=None, redoc_url=None, responses=FAILURES
    )
    app.state.ready = False
    _add_watch(app, service)
    if service.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    app.add_middleware(BodyLimit, most=service.settings.max_bytes)
    _add_failures(app)
    _add_health(app, service)
    _add_images(app, service)
    _add_page(app)
    capabilities = _add_features(app, service)

    @app.get("/v1", tags=["service"])
    async def about() -> schemas.About:
        """What the service can be asked."""
        return schemas.About(
            model=name_of_model(service.index.about.model),
            images=service.images,
            languages=await to_thread.run_sync(lambda: service.languages),
            columns=service.index.columns,
            calibrated=service.index.about.calibration is not None,
            rerank=service.settings.rerank if any(c.name == "match" and c.available for c in capabilities) else 0,
            capabilities=capabilities,
        )

    return app


def _add_features(app: FastAPI, service: Service) -> list[schemas.Capability]:
    """Routes of what the service's models can do; a plain 501 with the reason for the rest."""
    found = []
    for offer in service.offers:
        able = offer.model is not None
        languages = getattr(offer.feature, "languages", None) if able else None
        found.append(
            schemas.Capability(
                name=offer.name,
                available=able,
                reason=offer.reason,
                model=name_of_model(offer.model.name_or_path) if able else None,
                languages=[] if languages is None else languages(offer.model),
            )
        )
        if able:
            offer.feature.add(app, service, offer.model)
            continue
        for method, path in offer.feature.PATHS:
            app.add_api_route(path, _unavailable(str(offer.reason)), methods=[method], include_in_schema=False)
    return found


def _unavailable(reason: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return _problem(501, reason)

    return answer


def _add_watch(app: FastAPI, service: Service) -> None:
    """Counts, headers and keys around every request."""

    @app.middleware("http")
    async def watch(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        keys = service.settings.keys
        closed = request.url.path.startswith("/v1") or request.url.path in ("/metrics", "/openapi.json")
        header = request.headers.get("authorization")
        if keys and closed and owner(keys, header) is None:
            response = _no_entry(sent_key(header))
        else:
            try:
                response = await call_next(request)
            except Exception:
                service.metrics.request(request.method, _route(request), 500, time.perf_counter() - start)
                raise
        service.metrics.request(request.method, _route(request), response.status_code, time.perf_counter() - start)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", "no-referrer")
        return response


def _no_entry(key: str | None) -> Response:
    """The answer to a request without a key, or with one that nobody has (RFC 6750)."""
    if key is None:
        headers = {"WWW-Authenticate": "Bearer"}
        return _problem(401, "an API key is needed", "send it as: Authorization: Bearer KEY", headers)
    headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    return _problem(401, "the API key is wrong", "nobody here has this one; copy yours whole", headers)


def _route(request: Request) -> str:
    """The route that a request came by, as a label: what was asked would make a figure of every image."""
    return getattr(request.scope.get("route"), "path", None) or "other"


def _add_failures(app: FastAPI) -> None:
    @app.exception_handler(MMBertError)
    async def ours(request: Request, error: MMBertError) -> Response:
        if isinstance(error, IndexStoreError):
            log.error("%s", error)
            return _problem(500, "the index cannot be read")
        return _problem(400, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if (wrong := _wrong_body(first, request.headers.get("content-type"))) is not None:
            return _problem(422, wrong, HOW)
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        said = said_by_check(first)
        return _problem(422, f"{place}: {said}" if place else said, "see /openapi.json")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ValueError | RecursionError):  # FastAPI's, of what is no JSON
            return _problem(error.status_code, f"the body is not valid JSON: {error.__cause__}", HOW)
        return _problem(error.status_code, str(error.detail))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> Response:
        return _problem(
            429, str(error), f"come again in {error.retry_after} s", {"Retry-After": str(error.retry_after)}
        )

    @app.exception_handler(Closing)
    async def closing(request: Request, error: Closing) -> Response:
        return _problem(503, str(error), "come again soon", {"Retry-After": "5"})

    @app.exception_handler(TooLate)
    async def too_late(request: Request, error: TooLate) -> Response:
        return _problem(504, str(error))


def _wrong_body(found: dict[str, Any], kind: str | None) -> str | None:
    """What is wrong with a body as a whole; None where the fault is within it, or elsewhere.

    Args:
        found: the first of the problems that FastAPI tells.
        kind: content type of the request.
    """
    if found["type"] == "json_invalid":
        return f"the body is not valid JSON: {found['ctx']['error']} at character {found['loc'][-1] + 1}"
    if tuple(found["loc"]) != ("body",):
        return None
    if found["type"] == "missing":
        return "the request has no body"
    if isinstance(found["input"], bytes):  # nothing has read it as JSON
        return "the body has no content type" if kind is None else f"the body is sent as {kind[:80]}, not as JSON"
    return "the body is not a JSON object"


def _problem(status: int, message: str, hint: str | None = None, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "hint": hint}}, status, headers)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["service"])
    async def alive() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"])
    async def ready() -> Response:
        """It takes requests: 503 while it starts and shuts down."""
        return JSONResponse({"status": "ready"}) if app.state.ready else _problem(503, "not ready")

    @app.get("/metrics", tags=["service"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures in Prometheus' text format."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_images(app: FastAPI, service: Service) -> None:
    @lru_cache(maxsize=1024)
    def small(name: str, side: int, opened: int) -> bytes:
        return thumbnail(image_bytes(service.index, name), side)

    @app.get("/v1/images/{name}", tags=["search"], response_class=Response)
    async def image(
        request: Request, name: Annotated[str, "id"], size: Annotated[int | None, Query(ge=32, le=1024)] = None
    ) -> Response:
        """An image of the index as it is, or (with `size`) as a WebP of at most so many pixels a side."""
        try:
            if size is None:
                data = await to_thread.run_sync(image_bytes, service.index, name)
                kind = media_type(data)
            else:
                data, kind = await to_thread.run_sync(small, name, size, service.opened), "image/webp"
        except MMBertError as error:
            return _problem(404, error.message, error.hint)
        if kind is None:
            return _problem(404, "the image is of a kind that is not given out", "ask for it with ?size=640")
        tag = f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'
        headers = {"ETag": tag, "Cache-Control": "private, max-age=300", "Content-Security-Policy": "sandbox"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)


def _add_page(app: FastAPI) -> None:
    for path, (file, kind) in PAGE_FILES.items():
        app.add_api_route(path, _static(PAGE / file, kind), methods=["GET"], include_in_schema=False)


def _static(file: Path, kind: str) -> Callable[[], Awaitable[Response]]:
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}

    async def answer() -> Response:
        return Response(file.read_bytes(), media_type=kind, headers=headers)

    return answer
