"""The REST half of the fake Jira: what each path answers in each dialect."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from tests.support.jira import (
    NAVIGABLE,
    PRIORITIES,
    STATUSES,
    TYPES,
    Account,
    FakeJira,
    Issue,
    Said,
    plain,
)


class Refused(Exception):
    """Jira's way to say no."""

    def __init__(self, status: int, message: str, **errors: str) -> None:
        super().__init__(message)
        self.status, self.message, self.errors = status, message, errors


Answer = Any
Handler = Callable[..., Answer]
_PATHS: list[tuple[str, re.Pattern[str], Handler]] = []


def _on(method: str, path: str) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
        _PATHS.append((method, re.compile(rf"{pattern}/?"), handler))
        return handler

    return add


def answer(
    jira: FakeJira, method: str, path: str, query: Mapping[str, str], body: Any
) -> web.Response:
    """Return what Jira answers."""
    if match := re.match(r"/rest/api/(\d)(/.*)", path):
        version, rest = int(match[1]), match[2]
    else:
        version, rest = 0, path
    spoken = {"cloud": (0, 2, 3), "datacenter": (0, 2)}[jira.dialect]
    try:
        if version not in spoken:
            raise Refused(404, "null for uri")
        for wanted, pattern, handler in _PATHS:
            if wanted == method and (found := pattern.fullmatch(rest)):
                said = handler(jira, version, query, body, **found.groupdict())
                status, shown = said if isinstance(said, tuple) else (200, said)
                raw = b"" if shown is None else orjson.dumps(shown)
                return web.Response(status=status, body=raw, content_type="application/json")
        raise Refused(404, "null for uri")
    except Refused as exc:
        raw = orjson.dumps(
            {"errorMessages": [exc.message] * bool(exc.message), "errors": exc.errors}
        )
        return web.Response(status=exc.status, body=raw, content_type="application/json")


# --- the account, the server ---------------------------------------------------------------


@_on("GET", "/myself")
def _myself(jira: FakeJira, version: int, query: Mapping[str, str], body: Any) -> Answer:
    shown = jira._account(jira.me)
    assert shown is not None
    return {**shown, "emailAddress": jira.email, "timeZone": jira.zone.key, "locale": "en_US"}


@_on("GET", "/serverInfo")
def _server(jira: FakeJira, version: int, query: Mapping[str, str], body: Any) -> Answer:
    cloud = jira.dialect == "cloud"
    return {
        "baseUrl": jira.url,
        "version": "1001.0.0-SNAPSHOT" if cloud else "9.12.4",
        "deploymentType": "Cloud" if cloud else "Server",
        "serverTime": jira.shown_time(jira.now),
    }


@_on("GET", "/project/{key}")
def _project(jira: FakeJira, version: int, query: Any, body: Any, key: str) -> Answer:
    if key not in jira.projects:
        raise Refused(404, f"No project could be found with key '{key}'.")
    return {"id": "10000", "key": key, "name": jira.projects[key], "projectTypeKey": "service_desk"}


# --- searching -----------------------------------------------------------------------------


@_on("GET", "/search")
@_on("POST", "/search")
def _search(jira: FakeJira, version: int, query: Mapping[str, str], body: Any) -> Answer:
    if jira.dialect == "cloud":
        raise Refused(
            410,
            "The requested API has been removed. Please migrate to the /rest/api/3/search/jql API."
            " See https://developer.atlassian.com/changelog/#CHANGE-2046",
        )
    asked = body if body is not None else query
    found = _found(jira, str(asked.get("jql", "")))
    start, size = int(asked.get("startAt", 0)), min(int(asked.get("maxResults", 50)), 1000)
    size = min(size, jira.page_limit)
    fields = _fields(asked.get("fields"), ["*navigable"])
    page = found[start : start + size]
    return {
        "startAt": start,
        "maxResults": size,
        "total": len(found),
        "issues": [_shown(jira, one, 2, fields, asked) for one in page],
    }


@_on("GET", "/search/jql")
@_on("POST", "/search/jql")
def _search_jql(jira: FakeJira, version: int, query: Mapping[str, str], body: Any) -> Answer:
    if jira.dialect != "cloud":
        raise Refused(404, "null for uri")
    asked = body if body is not None else query
    if "startAt" in asked:
        raise Refused(400, "Unrecognized field startAt")
    jql = str(asked.get("jql", ""))
    if not jql.partition("ORDER BY")[0].strip():
        raise Refused(400, "Unbounded JQL queries are not allowed here.")
    token, start = asked.get("nextPageToken"), 0
    if token:
        if token not in jira._tokens or jira._tokens[token][0] != jql:
            raise Refused(400, "The provided next page token is invalid or expired.")
        start = jira._tokens[token][1]
    found = _found(jira, jql)
    size = min(int(asked.get("maxResults", 50)), jira.page_limit)
    fields = _fields(asked.get("fields"), [])
    page = found[start : start + size]
    last = start + size >= len(found)
    shown: dict[str, Any] = {"isLast": last, "issues": []}
    for one in page:
        whole = _shown(jira, one, version, fields, asked)
        shown["issues"].append(whole if fields else {"id": whole["id"]})
    if not last:
        shown["nextPageToken"] = f"token-{len(jira._tokens)}"
        jira._tokens[shown["nextPageToken"]] = (jql, start + size)
    return shown


def _fields(asked: Any, default: list[str]) -> list[str]:
    if asked is None:
        return default
    return asked.split(",") if isinstance(asked, str) else list(asked)


def _shown(
    jira: FakeJira, issue: Issue, version: int, fields: list[str], asked: Mapping[str, Any]
) -> dict[str, Any]:
    if "*navigable" in fields:
        fields = [name for name in NAVIGABLE if name != "comment"]
    shown = jira._issue(issue, version=version, fields=fields)
    if asked.get("properties"):
        names = _fields(asked["properties"], [])
        kept = issue.properties
        shown["properties"] = {n: kept[n] for n in names if n in kept}
    return shown


_CLAUSE = re.compile(
    r"""\s*(?P<field>issue\.property\[[^\]]+\][\w.]*|\w+)\s*(?P<op>>=|<=|!=|~|=|<|>|not\s+in|in)\s*
        (?P<value>"[^"]*"|'[^']*'|\([^)]*\)|[^\s()]+)\s*""",
    re.VERBOSE | re.IGNORECASE,
)


def _found(jira: FakeJira, jql: str) -> list[Issue]:
    where, _, order = jql.partition("ORDER BY")
    tests = []
    while where.strip():
        match = _CLAUSE.match(where)
        if match is None:
            raise Refused(400, f"Error in the JQL Query: '{where.strip()}' is not understood.")
        tests.append((match["field"], match["op"].lower(), match["value"]))
        where = where[match.end() :]
        if where.strip():
            if not where.upper().startswith("AND "):
                raise Refused(400, f"Error in the JQL Query: expecting AND before '{where}'.")
            where = where[4:]
    found = []
    for key in jira._indexed:
        issue = jira.issues.get(key)
        if issue is not None and all(_holds(jira, issue, *test) for test in tests):
            found.append(issue)
    for part in reversed([part.split() for part in order.split(",") if part.strip()]):
        down = len(part) > 1 and part[1].upper() == "DESC"
        found.sort(key=_ordering(jira, part[0]), reverse=down)
    return found


def _ordering(jira: FakeJira, name: str) -> Callable[[Issue], Any]:
    if name.lower() == "key":
        return lambda issue: (issue.project, int(issue.key.rpartition("-")[2]))
    if name.lower() == "updated":
        return lambda issue: jira._indexed[issue.key]
    if name.lower() == "created":
        return lambda issue: issue.created
    raise Refused(400, f"Not able to sort using field '{name}'.")


def _holds(jira: FakeJira, issue: Issue, field: str, op: str, value: str) -> bool:
    values = [one.strip().strip("\"'") for one in value.strip("()").split(",")]
    field = field.lower() if not field.startswith("issue.property") else field
    if field in ("updated", "created"):
        own = jira._indexed[issue.key] if field == "updated" else issue.created
        bound = _moment(jira, values[0])
        return {">=": own >= bound, "<=": own <= bound, ">": own > bound, "<": own < bound}[op]
    have: list[str]
    if field in ("key", "issuekey", "issue", "id"):
        have = [issue.key, issue.id]
        if op in ("=", "in") and (missing := [v for v in values if not _known(jira, v)]):
            raise Refused(400, f"An issue with key '{missing[0]}' does not exist for field 'key'.")
    elif field == "project":
        if missing := [v for v in values if v not in jira.projects]:
            raise Refused(400, f"The value '{missing[0]}' does not exist for the field 'project'.")
        have = [issue.project]
    elif field == "labels":
        have = issue.labels
    elif field == "status":
        have = [issue.status]
    elif field in ("text", "summary"):
        # Words in any order, as Jira's index finds them.
        words = set(re.findall(r"\w+", issue.summary.lower()))
        return set(re.findall(r"\w+", value.lower())) <= words
    elif match := re.fullmatch(r"issue\.property\[([^\]]+)\]\.?([\w.]*)", field):
        kept: Any = issue.properties.get(match[1])
        for part in filter(None, match[2].split(".")):
            kept = kept.get(part) if isinstance(kept, dict) else None
        have = [str(kept)] if kept is not None else []
    else:
        raise Refused(400, f"Field '{field}' does not exist or you do not have permission.")
    hit = any(v in have for v in values)
    return hit if op in ("=", "in") else not hit


def _known(jira: FakeJira, key: str) -> bool:
    return key in jira.issues or any(one.id == key for one in jira.issues.values())


def _moment(jira: FakeJira, text: str) -> datetime:
    """Read a time of JQL, which is one of the account's time zone and has no seconds."""
    for form in ("%Y-%m-%d %H:%M", "%Y/%m/%d %H:%M", "%Y-%m-%d"):
        try:
            return datetime.strptime(text, form).replace(tzinfo=jira.zone).astimezone(UTC)
        except ValueError:
            continue
    raise Refused(400, f"Date value '{text}' is invalid.")


# --- issues --------------------------------------------------------------------------------


def _issue(jira: FakeJira, ref: str) -> Issue:
    ref = jira.moved.get(ref, ref)
    for issue in jira.issues.values():
        if ref in (issue.key, issue.id):
            return issue
    raise Refused(404, "Issue does not exist or you do not have permission to see it.")


@_on("GET", "/issue/{ref}")
def _get(jira: FakeJira, version: int, query: Mapping[str, str], body: Any, ref: str) -> Answer:
    fields = _fields(query.get("fields"), ["*all"])
    return _shown(jira, _issue(jira, ref), version, fields, query)


@_on("POST", "/issue")
def _create(jira: FakeJira, version: int, query: Any, body: Any) -> Answer:
    fields = dict(body.get("fields") or {})
    project = (fields.pop("project", None) or {}).get("key")
    if project not in jira.projects:
        raise Refused(400, "", project="project is required")
    if not fields.get("summary"):
        raise Refused(400, "", summary="You must specify a summary of the issue.")
    if "\n" in fields["summary"] or len(fields["summary"]) > 255:
        raise Refused(400, "", summary="Summary must be at most 255 characters on one line.")
    kind = (fields.pop("issuetype", None) or {}).get("name", "")
    if kind not in TYPES:
        raise Refused(400, "", issuetype="Specify a valid issue type")
    read = _read_fields(jira, version, fields)
    issue = jira.issue(read.pop("summary"), project=project, type=kind, **read)
    for entry in body.get("properties") or ():
        issue.properties[entry["key"]] = entry["value"]
    return 201, {
        "id": issue.id,
        "key": issue.key,
        "self": f"{jira.url}/rest/api/2/issue/{issue.id}",
    }


@_on("PUT", "/issue/{ref}")
def _edit(jira: FakeJira, version: int, query: Any, body: Any, ref: str) -> Answer:
    issue = _issue(jira, ref)
    for entry in body.get("properties") or ():
        issue.properties[entry["key"]] = entry["value"]
    read = _read_fields(jira, version, dict(body.get("fields") or {}))
    read.pop("adf", None) if "description" not in read else None
    adf = read.pop("adf", None)
    if "extra" in read:
        read["extra"] = {**issue.extra, **read["extra"]}
    if read:
        jira.change(issue, **read)
    if "description" in read:
        issue.adf = adf
    return 204, None


def _read_fields(jira: FakeJira, version: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields as an issue keeps them; refuse what Jira refuses."""
    read: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "description":
            read["description"] = text = _text(version, value, "description")
            read["adf"] = value if isinstance(value, dict) else None
            if text is None:
                read["adf"] = None
        elif name in ("summary", "labels"):
            if name == "labels" and any(" " in label for label in value):
                raise Refused(400, "", labels="The label can't contain spaces.")
            read[name] = value
        elif name == "priority":
            if (value or {}).get("name") not in PRIORITIES:
                raise Refused(400, "", priority="The priority selected is invalid.")
            read[name] = value["name"]
        elif name in ("assignee", "reporter"):
            read[name] = _person(jira, value, name)
        elif name.startswith("customfield_"):
            extra[name] = value
        else:
            raise Refused(
                400, "", **{name: f"Field '{name}' cannot be set. It is not on the screen."}
            )
    return {**read, **({"extra": extra} if extra else {})}


def _person(jira: FakeJira, value: Any, name: str) -> Account | None:
    if value is None:
        return None
    wanted = value.get("accountId") if jira.dialect == "cloud" else value.get("name")
    if wanted is None:
        return None
    for account in jira.users.values():
        shown = jira._account(account) or {}
        if wanted in (shown.get("accountId"), shown.get("name")) and account.active:
            return account
    raise Refused(400, "", **{name: "User does not exist or cannot be assigned."})


def _text(version: int, value: Any, name: str) -> str | None:
    if value is None:
        return None
    if version == 3:
        good = isinstance(value, dict) and value.get("type") == "doc" and value.get("version") == 1
        if not good or not isinstance(value.get("content"), list) or not _sound(value):
            raise Refused(400, "", **{name: "Operation value must be an Atlassian Document"})
        return plain(value)
    if not isinstance(value, str):
        raise Refused(400, "", **{name: "Operation value must be a string"})
    return value


def _sound(node: Any) -> bool:
    """Return whether no text node of a document is empty."""
    if not isinstance(node, dict) or not isinstance(node.get("type"), str):
        return False
    if node["type"] == "text" and not node.get("text"):
        return False
    return all(_sound(child) for child in node.get("content", ()))


@_on("PUT", "/issue/{ref}/assignee")
def _assign(jira: FakeJira, version: int, query: Any, body: Any, ref: str) -> Answer:
    jira.change(_issue(jira, ref), assignee=_person(jira, body, "assignee"))
    return 204, None


@_on("GET", "/issue/{ref}/transitions")
def _transitions(jira: FakeJira, version: int, query: Any, body: Any, ref: str) -> Answer:
    return {"transitions": _ways(jira, _issue(jira, ref))}


def _ways(jira: FakeJira, issue: Issue) -> list[dict[str, Any]]:
    names = jira.flows.get(issue.status, [name for name in STATUSES if name != issue.status])
    return [
        {
            "id": STATUSES[name][0][::-1],
            "name": f"Move to {name}",
            "to": {
                "name": name,
                "id": STATUSES[name][0],
                "statusCategory": {"key": STATUSES[name][1]},
            },
        }
        for name in names
    ]


@_on("POST", "/issue/{ref}/transitions")
def _transit(jira: FakeJira, version: int, query: Any, body: Any, ref: str) -> Answer:
    issue = _issue(jira, ref)
    for way in _ways(jira, issue):
        if way["id"] == str(body.get("transition", {}).get("id")):
            jira.change(issue, status=way["to"]["name"])
            return 204, None
    raise Refused(400, "The transition is not valid for the issue's current status.")


# --- comments ------------------------------------------------------------------------------


@_on("GET", "/issue/{ref}/comment")
def _comments(jira: FakeJira, version: int, query: Any, body: Any, ref: str) -> Answer:
    issue = _issue(jira, ref)
    start, size = int(query.get("startAt", 0)), int(query.get("maxResults", 100))
    said = list(issue.comments)
    if query.get("orderBy", "").startswith("-"):
        said.reverse()
    expand = query.get("expand", "")
    page = [
        jira._comment(issue, one, version=version, expand=expand)
        for one in said[start : start + size]
    ]
    return {"startAt": start, "maxResults": size, "total": len(said), "comments": page}


def _said(issue: Issue, comment: str) -> Said:
    for one in issue.comments:
        if one.id == comment:
            return one
    raise Refused(404, "Can not find a comment for the id.")


@_on("GET", "/issue/{ref}/comment/{comment}")
def _read(jira: FakeJira, version: int, query: Any, body: Any, ref: str, comment: str) -> Answer:
    issue = _issue(jira, ref)
    return jira._comment(issue, _said(issue, comment), version=version)


@_on("POST", "/issue/{ref}/comment")
def _say(jira: FakeJira, version: int, query: Any, body: Any, ref: str) -> Answer:
    issue = _issue(jira, ref)
    text = _text(version, body.get("body"), "comment")
    if not text or not text.strip():
        raise Refused(400, "", comment="Comment body can not be empty!")
    properties = list(body.get("properties") or ())
    public = not any(
        one["key"] == "sd.public.comment" and one["value"].get("internal") for one in properties
    )
    adf = body["body"] if version == 3 else None
    said = jira.say(issue, text, adf=adf, public=public, properties=properties)
    return 201, jira._comment(issue, said, version=version)


@_on("PUT", "/issue/{ref}/comment/{comment}")
def _resay(jira: FakeJira, version: int, query: Any, body: Any, ref: str, comment: str) -> Answer:
    issue = _issue(jira, ref)
    said = jira.edit(issue, _said(issue, comment), _text(version, body["body"], "comment") or "")
    return jira._comment(issue, said, version=version)


@_on("DELETE", "/issue/{ref}/comment/{comment}")
def _unsay(jira: FakeJira, version: int, query: Any, body: Any, ref: str, comment: str) -> Answer:
    issue = _issue(jira, ref)
    jira.unsay(issue, _said(issue, comment))
    return 204, None


# --- properties ----------------------------------------------------------------------------


@_on("GET", "/issue/{ref}/properties/{name}")
def _property(jira: FakeJira, version: int, query: Any, body: Any, ref: str, name: str) -> Answer:
    issue = _issue(jira, ref)
    if name not in issue.properties:
        raise Refused(404, f"The property {name} does not exist.")
    return {"key": name, "value": issue.properties[name]}


@_on("PUT", "/issue/{ref}/properties/{name}")
def _set_property(
    jira: FakeJira, version: int, query: Any, body: Any, ref: str, name: str
) -> Answer:
    issue = _issue(jira, ref)
    status = 200 if name in issue.properties else 201
    issue.properties[name] = body
    return status, None


# --- people --------------------------------------------------------------------------------


@_on("GET", "/user/search")
@_on("GET", "/user/assignable/search")
def _people(jira: FakeJira, version: int, query: Mapping[str, str], body: Any) -> Answer:
    """Find by parts of words, as Jira does: the first hit may be somebody else."""
    text = query.get("query" if jira.dialect == "cloud" else "username")
    if text is None and "project" not in query:
        raise Refused(400, "The query parameter is required.")
    wanted = (text or "").lower()
    found = [
        account
        for account in jira.users.values()
        if account.active
        and (wanted in account.name.lower() or wanted in (account.email or "").lower())
    ]
    start, size = int(query.get("startAt", 0)), int(query.get("maxResults", 50))
    return [jira._account(account) for account in found[start : start + size]]


# --- creating ------------------------------------------------------------------------------


@_on("GET", "/issue/createmeta/{project}/issuetypes")
def _types(jira: FakeJira, version: int, query: Any, body: Any, project: str) -> Answer:
    shown = [{"id": number, "name": name, "subtask": False} for name, number in TYPES.items()]
    listed = "issueTypes" if jira.dialect == "cloud" else "values"
    return {"startAt": 0, "maxResults": 50, "total": len(shown), listed: shown}


@_on("GET", "/issue/createmeta/{project}/issuetypes/{kind}")
def _type(jira: FakeJira, version: int, query: Any, body: Any, project: str, kind: str) -> Answer:
    standard = ("summary", "description", "priority", "labels", "assignee")
    shown = [{"fieldId": name, "name": name.title(), "required": False} for name in standard]
    shown += [{"fieldId": name, **more} for name, more in jira.create_fields.items()]
    listed = "fields" if jira.dialect == "cloud" else "values"
    return {"startAt": 0, "maxResults": 50, "total": len(shown), listed: shown}


@_on("GET", "/rest/servicedeskapi/servicedesk/{desk}/requesttype")
def _request_types(jira: FakeJira, version: int, query: Any, body: Any, desk: str) -> Answer:
    shown = [
        {"id": number, "name": one["name"], "serviceDeskId": desk}
        for number, one in jira.request_types.items()
    ]
    return {"start": 0, "limit": 100, "size": len(shown), "isLastPage": True, "values": shown}


@_on("GET", "/rest/servicedeskapi/servicedesk/{desk}/requesttype/{kind}/field")
def _request_fields(
    jira: FakeJira, version: int, query: Any, body: Any, desk: str, kind: str
) -> Answer:
    if kind not in jira.request_types:
        raise Refused(404, "The request type does not exist.")
    return {"requestTypeFields": jira.request_types[kind].get("fields", [])}


@_on("POST", "/rest/servicedeskapi/request")
def _request(jira: FakeJira, version: int, query: Any, body: Any) -> Answer:
    kind = str(body.get("requestTypeId"))
    if kind not in jira.request_types:
        raise Refused(404, "The request type does not exist.")
    values = dict(body.get("requestFieldValues") or {})
    known = {one["fieldId"] for one in jira.request_types[kind].get("fields", [])}
    if strange := sorted(set(values) - known - {"summary", "description"}):
        raise Refused(400, f"Field '{strange[0]}' is not on the request type.")
    extra = {name: values.pop(name) for name in list(values) if name.startswith("customfield_")}
    project = jira.request_types[kind].get("project", next(iter(jira.projects)))
    reporter = jira.users.get(str(body.get("raiseOnBehalfOf")), jira.me)
    issue = jira.issue(
        values.get("summary", ""),
        project=project,
        description=values.get("description"),
        type=jira.request_types[kind].get("type", "Service Request"),
        reporter=reporter,
        extra=extra,
    )
    return 201, {"issueId": issue.id, "issueKey": issue.key, "requestTypeId": kind}
