"""The runbooks of the alerts, served from the admin port so that an alert's link works without a wiki."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aiohttp import web

_INSTALLED: Final = Path(__file__).with_name("runbook_pages")
_CHECKOUT: Final = Path(__file__).resolve().parents[1] / "docs/runbooks"


def folder() -> Path:
    """Where the pages are: part of the installed package, in a checkout among the documentation."""
    return _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


def names() -> list[str]:
    """The alerts that have a runbook, sorted."""
    return sorted(file.stem for file in folder().glob("*.md") if file.stem != "README")


def add_routes(app: web.Application) -> None:
    """Add them to the admin port."""
    app.router.add_get("/runbooks/", _index)
    app.router.add_get("/runbooks/{name}", _runbook)


async def _index(_: web.Request) -> web.Response:
    return web.Response(text="".join(f"/runbooks/{name}\n" for name in names()))


async def _runbook(request: web.Request) -> web.Response:
    name = request.match_info["name"].removesuffix(".md")
    if name not in names():
        return web.json_response({"error": f"no runbook {name}; there are: {', '.join(names())}"}, status=404)
    # Markdown is made to be read as it is.
    return web.Response(text=(folder() / f"{name}.md").read_text(encoding="utf-8"))
