"""HTML from small functions: whatever is not `Html` already is escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

_VOID = frozenset(("img", "meta"))


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | bool | None) -> Html:
    """An element; a trailing underscore of an attribute's name is dropped (``class_``).

    Attributes that are True stand without a value, those that are False or None are left out.
    """
    given = "".join(
        f" {key.rstrip('_')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not False and value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """One piece of HTML; parts that are plain text are escaped."""
    return Html("".join(p if isinstance(p, Html) else html.escape(p) for p in parts))


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Html:
    """A table in a box that scrolls sideways; the first cell of a row is its heading."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = []
    for first, *rest in rows:
        cells = (element("td", cell) for cell in rest)
        body.append(element("tr", element("th", first, scope="row"), *cells))
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="wide")


def picture(content: bytes, kind: str, alt: str, class_: str | None = None) -> Html:
    """An image in the page itself; ``kind`` is the part of its media type after ``image/``."""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return element("img", src=source, alt=alt, title=alt, class_=class_, loading="lazy")
