"""Errors as answers: a status, and {"error": {"kind", "message"}}."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse, Response

from pelagia.errors import DataError, MissingExtraError, OptionError, PelagiaError

__all__ = ["Refusal", "refusal_of"]


class Refusal(Exception):  # noqa: N818  # the service is well where it refuses
    """A request that is not answered: the HTTP status, a word and a sentence."""

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, message, headers

    @property
    def response(self) -> Response:
        """The answer."""
        error = {"kind": self.kind, "message": self.message}
        return JSONResponse({"error": error}, self.status, dict(self.headers or {}))


def refusal_of(error: PelagiaError) -> Refusal:
    """What a request hears of an error: 400 for an option, 422 for an image, 501 for an extra that is not installed, and 500
    where the model fails."""
    kinds = ((OptionError, 400), (DataError, 422), (MissingExtraError, 501), (PelagiaError, 500))
    status = next(status for kind, status in kinds if isinstance(error, kind))
    return Refusal(status, type(error).__name__, str(error))
