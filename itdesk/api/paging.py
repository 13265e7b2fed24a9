"""How a page of a list is asked for and answered: a plain array, the rest in headers."""

from typing import Any

from itdesk.api.route import Call, ListQuery, Reply
from itdesk.store.paging import Page, Window


def window(query: ListQuery) -> Window:
    """Return which part of the list a query asks for."""
    return Window(query.limit, query.cursor, query.offset, query.count)


def page_reply(call: Call, page: Page[Any]) -> Reply:
    """Answer a page: its entries, the link to the next page, and how many there are in all."""
    headers = next_link(call, page.next_cursor)
    if page.total is not None:
        headers["X-Total-Count"] = str(page.total)
    return Reply(page.items, 200, headers)


def next_link(call: Call, cursor: str | None) -> dict[str, str]:
    """Return the header with the link to the next page, or none at the end."""
    if cursor is None:
        return {}
    here = call.request.rel_url.without_query_params("offset", "cursor")
    following = here.extend_query(cursor=cursor)
    return {"Link": f'<{call.base_url}{following}>; rel="next"'}
