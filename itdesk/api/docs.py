"""The interactive documentation, from files of this installation: it works without internet."""

import hashlib
from pathlib import Path

from aiohttp import web
from openapi_ui_bundles import redoc, swagger_ui
from openapi_ui_bundles.__about__ import __version__ as bundle_version

from itdesk.api.route import Call, Handler, Reply, Route, Who
from itdesk.errors import NotFound

_SWAGGER_SCRIPT = b"""window.addEventListener("load", () => {
  window.ui = SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    validatorUrl: null,
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
  });
});
"""
_REDOC_SCRIPT = b"""window.addEventListener("load", () => {
  Redoc.init("/openapi.json", { disableSearch: false }, document.getElementById("redoc"));
});
"""
_STYLE = b"html { box-sizing: border-box } body { margin: 0; background: #fafafa }\n"

# Both pages style their elements from scripts; no script but our own files ever runs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_SWAGGER = Path(swagger_ui.static_path)
_REDOC = Path(redoc.static_path)
_JAVASCRIPT, _CSS, _PNG = "text/javascript; charset=utf-8", "text/css; charset=utf-8", "image/png"
_ASSETS: dict[str, tuple[Path | bytes, str]] = {
    "swagger-ui-bundle.js": (_SWAGGER / "swagger-ui-bundle.js", _JAVASCRIPT),
    "swagger-ui.css": (_SWAGGER / "swagger-ui.css", _CSS),
    "redoc.standalone.js": (_REDOC / "redoc.standalone.js", _JAVASCRIPT),
    "favicon.png": (_SWAGGER / "favicon-32x32.png", _PNG),
    "swagger.js": (_SWAGGER_SCRIPT, _JAVASCRIPT),
    "redoc.js": (_REDOC_SCRIPT, _JAVASCRIPT),
    "page.css": (_STYLE, _CSS),
}
# Names what is served, so that browsers may keep it for good.
_RELEASE = hashlib.sha256(
    b"".join((bundle_version.encode(), _SWAGGER_SCRIPT, _REDOC_SCRIPT, _STYLE))
).hexdigest()[:12]
_BASE = f"/docs/assets/{_RELEASE}"


def _page(title: str, element: str, styles: tuple[str, ...], scripts: tuple[str, ...]) -> bytes:
    links = "".join(f'<link rel="stylesheet" href="{_BASE}/{name}">' for name in styles)
    loads = "".join(f'<script src="{_BASE}/{name}"></script>' for name in scripts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" type="image/png" href="{_BASE}/favicon.png">{links}</head>'
        f'<body><div id="{element}"></div>{loads}</body></html>\n'
    ).encode()


_SWAGGER_PAGE = _page(
    "itdesk API",
    "swagger-ui",
    ("swagger-ui.css", "page.css"),
    ("swagger-ui-bundle.js", "swagger.js"),
)
_REDOC_PAGE = _page("itdesk API", "redoc", ("page.css",), ("redoc.standalone.js", "redoc.js"))
_HTML = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
_FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable"}


async def openapi(call: Call) -> Reply:
    """Return this API as an OpenAPI 3.1 document."""
    return Reply(await call.dispatcher.document.content(), 200, {"Cache-Control": "no-cache"})


async def swagger(call: Call) -> Reply:
    """Show this API in Swagger UI."""
    return Reply(_SWAGGER_PAGE, 200, _HTML)


async def redoc_page(call: Call) -> Reply:
    """Show this API in ReDoc."""
    return Reply(_REDOC_PAGE, 200, _HTML)


async def asset(call: Call) -> Reply | web.StreamResponse:
    """Return a file of the documentation pages."""
    source, media = _ASSETS.get(call.path["file"], (None, ""))
    if source is None or call.path["release"] != _RELEASE:
        raise NotFound("There is no such file.")
    return _serve(source, media, _FOR_GOOD)


async def favicon(call: Call) -> Reply | web.StreamResponse:
    """Return the icon that browsers show beside the page's title."""
    source, media = _ASSETS["favicon.png"]
    return _serve(source, media, {"Cache-Control": "public, max-age=86400"})


def _serve(source: Path | bytes, media: str, headers: dict[str, str]) -> Reply | web.StreamResponse:
    headers = {**headers, "Content-Type": media}
    if isinstance(source, bytes):
        return Reply(source, 200, headers)
    return web.FileResponse(source, headers=headers)


def _get(path: str, handler: Handler, media: str, response: object = bytes) -> Route:
    return Route(
        id="R4",
        method="GET",
        path=path,
        handler=handler,
        who=Who.PUBLIC,
        tag="documentation",
        response=response,
        response_media=media,
        rate="none",
        root=True,
    )


ROUTES: list[Route] = [
    _get("/openapi.json", openapi, "application/json", {"type": "object"}),
    _get("/docs", swagger, "text/html; charset=utf-8"),
    _get("/api/docs", swagger, "text/html; charset=utf-8"),
    _get("/redoc", redoc_page, "text/html; charset=utf-8"),
    _get("/docs/assets/{release}/{file}", asset, "application/octet-stream"),
    _get("/favicon.ico", favicon, "image/png"),
]
