"""The HTTP application: the page, the model's facts, and `POST /predict`."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from pelagia import __version__
from pelagia.errors import PelagiaError
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Runtime
from pelagia.serve.engine import SCAN_FACTOR, Engine
from pelagia.serve.guard import Guard
from pelagia.serve.options import ServeOptions
from pelagia.serve.parameters import describe, read_query
from pelagia.serve.refusals import Refusal, refusal_of

__all__ = ["create_service"]

#: One image in the network while another is decoded or drawn.
_THREADS = 2

#: Longest time that an image may take to arrive, and that a client which is told to come again is asked to wait.
_BODY_SECONDS, _RETRY_SECONDS = 60, 1

#: The parts of the page, which lie beside this file, and what they are.
_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/shapes.js": ("shapes.js", "text/javascript; charset=utf-8"),
}


def create_service(
    runtime: Runtime,
    options: ServeOptions | None = None,
    predict: PredictOptions | None = None,
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> ASGIApp:
    """The service of a model as an ASGI application.

    Args:
        runtime: the model.
        options: limits, and the address that it is to listen on.
        predict: how it predicts where a request says nothing; the limit of pixels is that of `options`.
        tell: called once with a sentence where intensities go beyond what the model was made for.

    Raises:
        OptionError: an option does not fit the model.
        ModelError: the model fails.
    """
    options = options or ServeOptions()
    service = _Service(runtime, options, predict or PredictOptions(), tell)
    app = FastAPI(title="Pelagia", version=__version__, docs_url=None, redoc_url=None, lifespan=service.lifespan)
    for path, (name, media) in _PAGE.items():
        content = files("pelagia.serve").joinpath(name).read_bytes()
        app.add_api_route(path, _constant(content, media), methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/health", service.health, methods=["GET"], summary="Whether the service runs")
    app.add_api_route("/model", service.model, methods=["GET"], summary="What the model is, and the limits")
    image = {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}, "required": True}
    app.add_api_route(
        "/predict",
        service.predict,
        methods=["POST"],
        summary="What the model finds in an image",
        openapi_extra={"requestBody": image, "parameters": describe()},
    )
    app.add_exception_handler(PelagiaError, _tell_error)
    app.add_exception_handler(Refusal, _tell_error)
    app.add_exception_handler(HTTPException, _tell_error)
    app.add_exception_handler(Exception, _tell_error)
    return Guard(app, options.host, options.allow_host)


class _Service:
    """What the routes do."""

    def __init__(self, runtime: Runtime, options: ServeOptions, predict: PredictOptions, tell: Callable[[str], None]) -> None:
        self._engine = Engine(runtime, options.max_pixels, tell)
        self._options, self._predict = options, predict
        self._facts = self._engine.facts(predict)
        self._facts["limits"] = {
            "max_bytes": options.max_bytes,
            "max_pixels": options.max_pixels,
            "max_scan_pixels": SCAN_FACTOR * options.max_pixels,
            "most_images": options.most_images,
        }
        self._inside = 0
        self._engine.warm_up()

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """The threads live as long as the service."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="serve")
        try:
            yield
        finally:
            self._threads.shutdown(cancel_futures=True)

    async def health(self) -> dict[str, Any]:
        """That it runs, and how many images are inside."""
        return {"status": "ok", "images": self._inside}

    async def model(self) -> dict[str, Any]:
        """What the model is."""
        return self._facts

    async def predict(self, request: Request) -> Response:
        """What is found in the image file that is the body of the request."""
        asked = read_query(request.query_params.multi_items(), self._predict)
        if self._inside >= self._options.most_images:
            message = f"{self._inside} images are being received, waiting or in work; come again later"
            raise Refusal(503, "Busy", message, {"retry-after": str(_RETRY_SECONDS)})
        self._inside += 1
        try:
            data = await self._body(request)
            answer = await asyncio.get_running_loop().run_in_executor(self._threads, self._engine.answer, data, asked)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody hears it
        finally:
            self._inside -= 1
        took = ", ".join(f"{name};dur={value:.1f}" for name, value in answer.milliseconds.items())
        return Response(answer.content, media_type=answer.media, headers={"server-timing": took})

    async def _body(self, request: Request) -> bytes:
        """All of it, read in pieces up to the limit; the server throws away what comes after an answer."""
        limit = self._options.max_bytes
        too_large = Refusal(413, "TooLarge", f"the image file has more than {limit:,} bytes (--max-bytes)")
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > limit:
            raise too_large
        body = io.BytesIO()  # which gives its bytes away without a copy
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for piece in request.stream():
                    body.write(piece)
                    if body.tell() > limit:
                        raise too_large
        except TimeoutError as error:
            raise Refusal(408, "Timeout", f"the image did not arrive within {_BODY_SECONDS} seconds") from error
        if body.tell() == 0:
            raise Refusal(400, "NoImage", "the body of the request must be the bytes of an image file; this one is empty")
        return body.getvalue()


def _constant(content: bytes, media: str) -> Callable[[], Any]:
    async def answer() -> Response:
        return Response(content, media_type=media)

    return answer


async def _tell_error(_: Request, error: Exception) -> Response:
    """Errors of ours by their sentence; of others nothing but that something failed, which the log tells."""
    if isinstance(error, PelagiaError):
        error = refusal_of(error)
    if isinstance(error, HTTPException):
        kind = HTTPStatus(error.status_code).phrase.replace(" ", "")
        error = Refusal(error.status_code, kind, f"{error.detail}; see /openapi.json", error.headers)
    if not isinstance(error, Refusal):
        error = Refusal(500, "InternalError", "something failed inside the service; its log says what")
    return error.response
