"""The intake's routes of the local endpoint, on a unix socket only.

Decides what HTTP has to do with it: a body is written as it comes, and refused where it is longer than stated or
allowed. What may lie where is `intake`'s business.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from .intake import Intake

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route


def routes(intake: Intake) -> list[Route]:
    """Return the routes."""
    from starlette.routing import Route

    found = _Routes(intake)
    return [
        Route("/inbox", found.look),
        Route("/inbox/{name}/{path:path}", found.receive, methods=["PUT"]),
    ]


class _Routes:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def look(self, _request: Request) -> Response:
        """Say whose releases are taken."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import Response

        anchor = await run_in_threadpool(self._intake.anchor)
        return Response(msgspec.json.encode({"root_sha256": anchor}), media_type="application/json")

    async def receive(self, request: Request) -> Response:
        """Take one file of a parcel."""
        from starlette.concurrency import run_in_threadpool
        from starlette.exceptions import HTTPException
        from starlette.responses import Response

        name, path = request.path_params["name"], request.path_params["path"]
        allowed = self._intake.length_max_bytes(path)
        stated = request.headers.get("content-length", "")
        if not stated.isascii() or not stated.isdecimal() or len(stated) > 15:
            raise HTTPException(411, "say how long the file is")
        if int(stated) > allowed:
            raise HTTPException(413, f"{stated} bytes, at most {allowed} are taken here")
        with ExitStack() as stack:
            file = await run_in_threadpool(stack.enter_context, self._intake.receiving(name, path))
            length = 0
            async for part in request.stream():
                length += len(part)
                await run_in_threadpool(file.write, part)
            if length != int(stated):
                raise HTTPException(400, f"{length} bytes came of {stated}")
            # In a thread, too: it waits until the disk has it.
            await run_in_threadpool(stack.pop_all().close)
        return Response(status_code=204)
