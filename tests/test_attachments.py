"""Attachments over REST against the real daemon and a real clamd."""

import asyncio
import base64
import hashlib
from email.message import Message
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import orjson
import pytest

from tests.support.daemon import SMALL_FILES, Live, Person
from tests.support.load import eventually
from tests.support.samples import eicar

LIMIT = int(SMALL_FILES["MAX_FILE_SIZE"])
TEXT = b"just some words\n"


@pytest.fixture
async def alice(live: Live) -> Person:
    """Somebody who attaches files."""
    return await live.person()


async def _presign(person: Person, ticket: str, data: bytes, **fields: Any) -> Any:
    asked = {"original_filename": "a b+c%2F.txt", "mime": "text/plain", "size": len(data), **fields}
    answer = await person.post(f"/tickets/{ticket}/attachments/presign", asked)
    return answer.expect(201)


async def _put(link: Any, data: bytes, **headers: str) -> Any:
    return await Person("").call(
        link["method"], link["upload_url"], data=data, headers={**link["headers"], **headers}
    )


async def _clean(person: Person, ticket: str, data: bytes = TEXT, name: str = "n.txt") -> Any:
    file = (await person.upload(ticket, data, name)).expect(201)
    found = await person.scanned(file["id"])
    assert found["scanned_status"] == "CLEAN", found
    return found


async def test_a_presigned_upload_is_scanned_without_further_calls(alice: Person) -> None:
    """S0-22, S0-28, S0-29, S3-08: presign by number, PUT, scanned although nobody confirmed."""
    ticket = await alice.ticket()
    link = await _presign(alice, ticket["number"], TEXT)
    assert link["object_key"].startswith(f"tickets/{ticket['id']}/")
    assert link["upload_url"].startswith(alice.base) and link["expires_in"] == 900
    reserved = (await alice.get(f"/attachments/{link['attachment_id']}")).expect(200)
    assert reserved["scanned_status"] == "PENDING" and reserved["uploaded_at"] is None
    assert (await _put(link, TEXT)).status == 200
    found = await alice.scanned(link["attachment_id"])
    assert found["scanned_status"] == "CLEAN"
    assert found["sha256"] == hashlib.sha256(TEXT).hexdigest()
    assert found["original_filename"] == "a b+c%2F.txt"


async def test_confirming_needs_the_bytes(live: Live, alice: Person) -> None:
    """S3-34, S3-35: 409 before the PUT, 201 after it and again; a foreign key is 404."""
    ticket = await alice.ticket()
    asked = {"ticket_id": ticket["key"], "filename": "a.txt", "content_type": "text/plain"}
    link = (await alice.post("/attachments/presigned-url", {**asked, "size": 16})).expect(201)
    assert link["file_key"] == link["object_key"]
    by_key = {"file_key": link["file_key"], "ticket_id": ticket["id"]}
    (await alice.post("/attachments", by_key)).refused(409, "E_ATTACHMENT_NOT_UPLOADED")
    assert (await _put(link, TEXT)).status == 200
    mallory = await live.person()
    (await mallory.post("/attachments", by_key)).refused(404, "E_ATTACHMENT_NOT_FOUND")
    for _ in range(2):
        record = (await alice.post("/attachments", by_key)).expect(201)
        assert record["id"] == link["attachment_id"] and record["uploaded_at"] is not None
    unknown = {"file_key": "tickets/no/such"}
    (await alice.post("/attachments", unknown)).refused(404, "E_ATTACHMENT_NOT_FOUND")
    by_query = f"/attachments/presigned-url?ticket_id={ticket['key']}&filename=q.txt&size=5"
    (await alice.call("POST", f"/api/v1{by_query}")).expect(201)


async def test_an_upload_link_takes_only_what_it_was_made_for(alice: Person) -> None:
    """R44: another size, type, method or edited link is 403; a used one as well."""
    ticket = await alice.ticket()
    link = await _presign(alice, ticket["key"], TEXT)
    (await _put(link, TEXT + b"x")).refused(403, "E_STORAGE_URL_INVALID")
    typed = {"Content-Type": "text/html"}
    (await _put(link, TEXT, **typed)).refused(403, "E_STORAGE_URL_INVALID")
    edited = dict(link, upload_url=link["upload_url"][:-2] + "AA")
    (await _put(edited, TEXT)).refused(403, "E_STORAGE_URL_INVALID")
    got = await Person("").call("GET", link["upload_url"])
    got.refused(403, "E_STORAGE_URL_INVALID")
    assert (await _put(link, TEXT)).status == 200
    (await _put(link, eicar()[: len(TEXT)])).refused(403, "E_STORAGE_URL_USED")


async def test_a_wrong_checksum_is_refused(alice: Person) -> None:
    """A checksum given at presigning is held against the bytes."""
    ticket = await alice.ticket()
    link = await _presign(alice, ticket["key"], TEXT, checksum="0" * 64)
    (await _put(link, TEXT)).refused(422, "E_VALIDATION_ERROR")
    right = hashlib.sha256(TEXT).hexdigest()
    link = await _presign(alice, ticket["key"], TEXT, checksum=right)
    assert (await _put(link, TEXT)).status == 200


async def test_a_download_link_serves_the_bytes_for_a_short_while(alice: Person) -> None:
    """S0-34, S0-35, S-22: no sign-in needed, 60 s at most, nothing for an edited link."""
    ticket = await alice.ticket()
    file = await _clean(alice, ticket["key"])
    path = f"/tickets/{ticket['key']}/attachments/{file['id']}/download"
    link = (await alice.get(path)).expect(200)
    assert link["attachment_id"] == file["id"] and 0 < link["expires_in"] <= 60
    served = await Person("").call("GET", link["download_url"])
    assert served.status == 200 and served.raw == TEXT
    url = link["download_url"]
    head, _, token = url.rpartition("/")
    body, _, mac = token.partition(".")
    payload = orjson.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    later = orjson.dumps([payload[0] + 3600, payload[1]])
    forged = base64.urlsafe_b64encode(later).rstrip(b"=").decode()
    for wrong in (f"{head}/{forged}.{mac}", f"{head}/{body}.", f"{head}/{body}", url + "x"):
        refused = await Person("").call("GET", wrong)
        refused.refused(403, "E_STORAGE_URL_INVALID")
    put = await Person("").call("PUT", url, data=b"x")
    put.refused(403, "E_STORAGE_URL_INVALID")
    (await alice.delete(f"/attachments/{file['id']}")).expect(204)
    (await Person("").call("GET", url)).refused(403, "E_STORAGE_URL_INVALID")


async def test_what_belongs_to_others_is_not_served(live: Live, alice: Person) -> None:
    """S-22, S2-31, S3-36, S3-38: guessed ids, no token, another's ticket, access taken away."""
    ticket = await alice.ticket()
    file = await _clean(alice, ticket["key"])
    mallory = await live.person()
    own = await mallory.ticket()
    for path in (f"/attachments/{file['id']}", f"/attachments/{file['id']}/content"):
        (await mallory.get(path)).refused(404, "E_ATTACHMENT_NOT_FOUND")
        (await live.nobody.get(path)).refused(401, "E_AUTH_TOKEN_MISSING")
    (await mallory.delete(f"/attachments/{file['id']}")).refused(404, "E_ATTACHMENT_NOT_FOUND")
    crossed = f"/tickets/{own['key']}/attachments/{file['id']}/download"
    (await mallory.get(crossed)).refused(404, "E_ATTACHMENT_NOT_FOUND")
    for unknown in ("00000000-0000-7000-8000-000000000000", "nonsense"):
        (await alice.get(f"/attachments/{unknown}")).refused(404, "E_ATTACHMENT_NOT_FOUND")
    agent = await live.person("agent")
    helper = await live.person("agent")
    (await agent.patch(f"/tickets/{ticket['key']}", {"assignee_id": helper.id})).expect(200)
    (await live.admin.patch(f"/users/{helper.id}", {"role": "user"})).expect(200)
    (await helper.get(f"/attachments/{file['id']}")).expect(200)
    (await agent.patch(f"/tickets/{ticket['key']}", {"assignee_ids": []})).expect(200)
    (await helper.get(f"/attachments/{file['id']}/content")).refused(404, "E_ATTACHMENT_NOT_FOUND")


async def test_an_infected_file_is_never_served(live: Live, alice: Person) -> None:
    """S0-21, S0-23: INFECTED with the signature's name; 403 for everybody, administrators too."""
    ticket = await alice.ticket()
    file = (await alice.upload(ticket["key"], eicar(), "invoice.txt")).expect(201)
    found = await alice.scanned(file["id"])
    assert found["scanned_status"] == "INFECTED" and "Eicar" in found["scan_signature"]
    assert found["scan_engine"].startswith("clamav ")
    for person in (alice, live.admin):
        refused = await person.get(f"/attachments/{file['id']}/content")
        refused.refused(403, "E_ATTACHMENT_INFECTED")
        link = await person.get(f"/tickets/{ticket['key']}/attachments/{file['id']}/download")
        link.refused(403, "E_ATTACHMENT_INFECTED")


async def test_sizes_and_types_are_held(alice: Person) -> None:
    """S2-06, S2-53: the limit passes, a byte more is 413, empty 422, a program 415."""
    ticket = await alice.ticket()
    key = ticket["key"]
    whole = (await alice.upload(key, b"a" * LIMIT)).expect(201)
    assert whole["size"] == LIMIT and whole["scanned_status"] == "PENDING"
    details = (await alice.upload(key, b"a" * (LIMIT + 1))).refused(413, "E_FILE_TOO_LARGE")
    assert details == {"max_file_size": LIMIT}
    (await alice.upload(key, b"")).refused(422, "E_VALIDATION_ERROR")
    for name, data, mime in (
        ("setup.exe", b"text", "text/plain"),
        ("run.sh", b"text", "text/plain"),
        ("note.txt", b"MZ\x90\0", "text/plain"),
        ("note.txt", b"\x7fELF", "application/octet-stream"),
        ("page.html", b"<b>", "text/html"),
        ("x.bin", b"x", "application/x-msdownload"),
    ):
        refused = await alice.upload(key, data, name, mime=mime)
        refused.refused(415, "E_FILE_TYPE_NOT_ALLOWED")
    presign = f"/tickets/{key}/attachments/presign"
    big = {"original_filename": "a.txt", "mime": "text/plain", "size": LIMIT + 1}
    (await alice.post(presign, big)).refused(413, "E_FILE_TOO_LARGE")
    runs = {"original_filename": "a.exe", "mime": "text/plain", "size": 1}
    (await alice.post(presign, runs)).refused(415, "E_FILE_TYPE_NOT_ALLOWED")
    listed = (await alice.get(f"/tickets/{key}/attachments")).expect(200)
    assert [file["id"] for file in listed] == [whole["id"]]


async def test_a_body_without_length_is_cut_at_the_limit(alice: Person) -> None:
    """P-02: chunked, so nobody announced the size; 413 and nothing is kept."""
    ticket = await alice.ticket()
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        yield (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'
            b"Content-Type: text/plain\r\n\r\n"
        )
        while sent < 20 * LIMIT:
            sent += 65536
            yield b"a" * 65536

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        path = f"/api/v1/tickets/{ticket['key']}/attachments"
        answer = await alice.call("POST", path, data=endless(), headers=headers)
        answer.refused(413, "E_FILE_TOO_LARGE")
    except OSError:
        pass  # the daemon hung up while we were still sending
    assert sent < 10 * LIMIT
    assert (await alice.get(f"/tickets/{ticket['key']}/attachments")).expect(200) == []


async def test_files_are_listed_in_upload_order_and_deleted_whole(
    live: Live, alice: Person
) -> None:
    """S2-30, S2-32, S3-37, S3-38: row and bytes go; only the uploader and agents may."""
    ticket = await alice.ticket()
    files = [await _clean(alice, ticket["key"], TEXT + bytes([65 + n])) for n in range(3)]
    for path in (f"/tickets/{ticket['key']}/attachments", f"/attachments/ticket/{ticket['id']}"):
        listed = (await alice.get(path)).expect(200)
        assert [file["id"] for file in listed] == [file["id"] for file in files]
    uploads = live.daemon.state_dir / "uploads"

    def stored(file: Any) -> list[str]:
        return [str(path) for path in uploads.rglob(f"{file['id']}*")]

    assert stored(files[0])
    (await alice.delete(f"/attachments/{files[0]['id']}")).expect(204)
    assert not stored(files[0])
    agent = await live.person("agent")
    (await agent.delete(f"/attachments/{files[1]['id']}")).expect(204)
    theirs = (await agent.upload(ticket["key"], TEXT)).expect(201)
    await agent.scanned(theirs["id"])  # a scan that goes on would write once more
    refused = await alice.delete(f"/attachments/{theirs['id']}")
    refused.refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    (await live.admin.delete(f"/tickets/{ticket['key']}")).expect(204)

    async def forgotten() -> bool:
        # A scan that was going on removes what it had made when it learns that it came too late.
        return not stored(files[2]) and not stored(theirs)

    await eventually(forgotten, seconds=20)


HOSTILE_NAMES = [
    "../../etc/passwd", "/etc/shadow", "..\\..\\boot.ini", "C:\\Windows\\a.txt", "con.txt",
    "a\r\nSet-Cookie: x=y.txt", 'a"; filename="b.txt', "a\u202etxt.gpj", "a\u200b.txt",
    "%2e%2e%2fa.txt", "．．／a.txt", "..", ".", "...txt", "ключ 😀.txt", "a;b=c.txt", "a'b.txt",
    "x" * 251 + ".txt", " lead.txt", "trail.txt ", "a\tb.txt", "-rf.txt", "~root.txt", "$(id).txt",
    "a|b>c.txt", "\ufeffbom.txt", "a%00.txt", "nul", "aux.txt.", "../", "a/../b.txt",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
async def test_a_hostile_name_is_only_ever_text(live: Live, alice: Person, name: str) -> None:
    """S-20: the key is opaque, nothing lies outside the root, the header parses."""
    ticket = await alice.ticket()
    asked = {"original_filename": name, "mime": "text/plain", "size": len(TEXT)}
    answer = await alice.post(f"/tickets/{ticket['key']}/attachments/presign", asked)
    if answer.status == 422:
        answer.refused(422, "E_VALIDATION_ERROR")
        return
    link = answer.expect(201)
    assert link["object_key"] == f"tickets/{ticket['id']}/{link['attachment_id']}"
    assert (await _put(link, TEXT)).status == 200
    file = await alice.scanned(link["attachment_id"])
    served = await alice.get(f"/attachments/{file['id']}/content")
    assert served.status == 200 and "Set-Cookie" not in served.headers
    message = Message()
    message["Content-Disposition"] = served.headers["Content-Disposition"]
    assert message.get_content_disposition() == "attachment"
    encoded = served.headers["Content-Disposition"].rpartition("UTF-8''")[2]
    shown = unquote(encoded)
    assert shown == file["original_filename"]
    assert not set("/\\\r\n\0") & set(shown) and shown.strip(". ") == shown.strip(" .")
    assert not {c for c in shown if c in "\u202e\u200b\ufeff"}
    inside = live.daemon.state_dir / "uploads"
    assert all(
        path.is_relative_to(inside) for path in live.daemon.state_dir.rglob(f"*{file['id']}*")
    )


async def test_three_hostile_hundreds_never_leave_their_place(live: Live, alice: Person) -> None:
    """S-20: every way of saying `../`, device, quote and line end, before and after a name."""
    around = ["../", "..\\", "/", "%2e%2e/", "．．/", "....//", "C:", "\\\\host\\", "~", "\u202e",
              "\u200b.", "\r\nX: y", '"', "';", "a;b=", "\u2028"]  # fmt: skip
    stems = ["etc/passwd", "con", "nul.txt", "a.txt", ".htaccess", "-rf", "$(id)", "a" * 240,
             "ключ", "x.txt."]  # fmt: skip
    names = [f"{before}{stem}{after}.txt" for before in around for stem in stems
             for after in ("", " ", "\t")][:330]  # fmt: skip
    assert len(set(names)) >= 300
    ticket = await alice.ticket()
    few = asyncio.Semaphore(8)

    async def reserve(name: str) -> None:
        asked = {"original_filename": name, "mime": "text/plain", "size": 1}
        async with few:
            answer = await alice.post(f"/tickets/{ticket['key']}/attachments/presign", asked)
        if answer.status == 422:
            return
        link = answer.expect(201)
        assert link["object_key"] == f"tickets/{ticket['id']}/{link['attachment_id']}"
        file = (await alice.get(f"/attachments/{link['attachment_id']}")).expect(200)
        assert not set("/\\\r\n\0\u202e\u200b\u2028") & set(file["original_filename"])

    async def attach(name: str) -> None:
        async with few:
            answer = await alice.upload(ticket["key"], b"x", name)
        if answer.status == 422:
            return
        file = answer.expect(201)
        assert file["object_key"] == f"tickets/{ticket['id']}/{file['id']}"
        assert not set("/\\\r\n\0\u202e\u200b\u2028") & set(file["original_filename"])

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(reserve(name))
            group.create_task(attach(name))
    inside = live.daemon.state_dir / "uploads"
    strays = [
        path
        for path in live.daemon.state_dir.rglob("*")
        if path.is_file() and ticket["id"] in str(path) and not path.is_relative_to(inside)
    ]
    assert strays == []
    below = {p.name.partition(".")[0] for p in inside.rglob(f"*{ticket['id']}/*") if p.is_file()}
    assert all(UUID(name) for name in below) and below


@pytest.mark.parametrize(
    ("name", "mime", "data"),
    [
        ("a.xml", "text/xml", b"<?xml version='1.0'?><x><script>alert(1)</script></x>"),
        ("a.pdf", "application/pdf", b"%PDF-1.4\n<script>alert(1)</script>"),
        ("a.txt", "text/plain", b"<html><script>alert(1)</script></html>"),
        ("a.png", "image/png", b"\x89PNG\r\n\x1a\n<script>alert(1)</script>"),
        ("a.json", "application/json", b'{"a": "<script>"}'),
        ("a.eml", "message/rfc822", b"Subject: x\r\n\r\n<script>alert(1)</script>"),
    ],
)
async def test_a_polyglot_is_only_ever_saved(
    alice: Person, name: str, mime: str, data: bytes
) -> None:
    """S-23: attachment, a passive type or octet-stream, nosniff, sandboxed, no cookie."""
    ticket = await alice.ticket()
    file = (await alice.upload(ticket["key"], data, name, mime=mime)).expect(201)
    await alice.scanned(file["id"])
    served = await alice.get(f"/attachments/{file['id']}/content")
    assert served.status == 200 and served.raw == data
    assert served.headers["Content-Type"] in {
        "application/octet-stream", "application/pdf", "text/plain", "image/png",
        "application/json",
    }  # fmt: skip
    assert served.headers["Content-Disposition"].startswith("attachment;")
    assert served.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in served.headers["Content-Security-Policy"]
    assert "no-store" in served.headers["Cache-Control"]
    assert "Set-Cookie" not in served.headers


async def test_what_a_presigned_file_really_is_the_scanner_sees(alice: Person) -> None:
    """S2-06, S-23: a program behind a harmless claim is FAILED; a false type is corrected."""
    ticket = await alice.ticket()
    for program in (b"MZ\x90\0" + bytes(600), b"#!/bin/sh\nid\n", b"Rar!\x1a\x07\0" + bytes(99)):
        link = await _presign(alice, ticket["key"], program)
        assert (await _put(link, program)).status == 200
        found = await alice.scanned(link["attachment_id"])
        assert (found["scanned_status"], found["scan_reason"]) == ("FAILED", "type")
        refused = await alice.get(f"/attachments/{found['id']}/content")
        details = refused.refused(409, "E_ATTACHMENT_SCAN_FAILED")
        assert details == {"scan_reason": "type"}
    for claim, content, then in (
        ("text/plain", b"\x89PNG\r\n\x1a\n" + bytes(40), "image/png"),
        ("image/png", b"<svg onload=alert(1)>", "text/plain"),
        ("application/pdf", b"<html><script>alert(1)</script>", "text/plain"),
        ("image/png", b"\x93 neither this nor that \xfa", "application/octet-stream"),
    ):
        link = await _presign(alice, ticket["key"], content, mime=claim)
        assert (await _put(link, content)).status == 200
        found = await alice.scanned(link["attachment_id"])
        assert (found["scanned_status"], found["mime"]) == ("CLEAN", then), found
        direct = (await alice.upload(ticket["key"], content, "a.dat", mime=claim)).expect(201)
        assert direct["mime"] == then
        served = await alice.get(f"/attachments/{found['id']}/content")
        assert served.headers["Content-Type"] == then and served.raw == content


async def test_a_repeated_upload_under_one_key_attaches_once(alice: Person) -> None:
    """R-02 for the multipart route: the second answer is the first one, the file is there once."""
    ticket = await alice.ticket()
    headers = {"Idempotency-Key": "upload-1"}
    first = await alice.upload(ticket["key"], TEXT, headers=headers)
    second = await alice.upload(ticket["key"], TEXT, headers=headers)
    assert first.expect(201) == second.expect(201) and first.raw == second.raw
    other = await alice.upload(ticket["key"], b"other", headers=headers)
    other.refused(422, "E_IDEMPOTENCY_KEY_REUSED")
    assert len((await alice.get(f"/tickets/{ticket['key']}/attachments")).expect(200)) == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "E_BAD_REQUEST"),
        (b"--b--\r\n", 422, "E_VALIDATION_ERROR"),
        (b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--', 422,
         "E_VALIDATION_ERROR"),
        (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--', 422,
         "E_VALIDATION_ERROR"),
        (b"garbage", 400, "E_BAD_REQUEST"),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhalf', 400,
         "E_BAD_REQUEST"),
    ],
)  # fmt: skip
async def test_a_broken_form_is_one_clear_error(
    alice: Person, body: bytes, status: int, code: str
) -> None:
    """Bad input changes nothing and is never a 500."""
    ticket = await alice.ticket()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    path = f"/api/v1/tickets/{ticket['key']}/attachments"
    (await alice.call("POST", path, data=body, headers=headers)).refused(status, code)
    json = await alice.call("POST", path, json={"file": "x"})
    json.refused(415, "E_UNSUPPORTED_MEDIA_TYPE")
    assert (await alice.get(f"/tickets/{ticket['key']}/attachments")).expect(200) == []


async def test_parallel_uploads_are_all_scanned(alice: Person) -> None:
    """Every file of a burst gets its own verdict."""
    ticket = await alice.ticket()
    async with asyncio.TaskGroup() as group:
        sent = [
            group.create_task(alice.upload(ticket["key"], eicar() if n % 4 == 0 else TEXT))
            for n in range(24)
        ]
    verdicts = [
        (await alice.scanned(task.result().expect(201)["id"]))["scanned_status"] for task in sent
    ]
    assert verdicts == ["INFECTED" if n % 4 == 0 else "CLEAN" for n in range(24)]
