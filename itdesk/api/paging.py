"""How a page of a list is asked for and answered: a plain array, the rest in headers."""

from typing import Any

from itdesk.api.route import Call, ListQuery, Reply
from itdesk.store.paging import Page, Window


def window(query: ListQuery) -> Window:
    """Return which part of the list a query asks for."""
    return Window(query.limit, query.cursor, query.offset, query.count)


def page_reply(call: Call, page: Page[Any]) -> Reply:
    """Answer a page: its entries, the link to the next page, and how many there are in all."""
    headers = {}
    if page.next_cursor is not None:
        here = call.request.rel_url.without_query_params("offset", "cursor")
        following = here.extend_query(cursor=page.next_cursor)
        headers["Link"] = f'<{call.base_url}{following}>; rel="next"'
    if page.total is not None:
        headers["X-Total-Count"] = str(page.total)
    return Reply(page.items, 200, headers)
