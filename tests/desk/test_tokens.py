"""Access tokens, keys, URLs and refresh tokens (S-10, S3-02, S3-52 to S3-55)."""

import hashlib
import hmac
import json
import multiprocessing
import os
import re
import stat
import time
from contextlib import suppress
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from itdesk.desk.admission import Admission
from itdesk.desk.keyfile import KeyFile, configured
from itdesk.desk.keys import Key, Keys
from itdesk.desk.tokens import (
    Claims,
    Tokens,
    UnknownKey,
    hash_refresh_token,
    new_refresh_token,
)
from itdesk.desk.urlsigner import UrlSigner
from itdesk.errors import ConfigError, ExpiredToken, Forbidden, InvalidToken, NotFound
from itdesk.runtime.clock import FakeClock
from tests.support.jwt_corpus import Forge, b64, control, corpus, dump
from tests.support.people import Office, opened

QUARTER = timedelta(minutes=15)
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SIGNERS: dict[str, Any] = {
    "RS256": RSA_KEY,
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "HS256": bytes(range(32)),
}


def pem(private: Any, form: str = "PKCS8") -> str:
    return str(
        private.private_bytes(
            serialization.Encoding.PEM,
            getattr(serialization.PrivateFormat, form),
            serialization.NoEncryption(),
        ).decode()
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=list(SIGNERS))
def keys(request: pytest.FixtureRequest) -> Keys:
    return Keys(SIGNERS[request.param])


@pytest.fixture
def tokens(keys: Keys, clock: FakeClock) -> Tokens:
    return Tokens(keys, clock)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens whose signature was checked, in order."""
    found: list[str] = []
    real = jwt.PyJWS.decode

    def count(self: jwt.PyJWS, token: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(token)
        return real(self, token, *args, **kwargs)

    monkeypatch.setattr(jwt.PyJWS, "decode", count)
    return found


def seconds(clock: FakeClock) -> int:
    return int(clock.now().timestamp())


def issue(tokens: Tokens) -> str:
    return tokens.issue(uuid4(), uuid4(), lifetime=QUARTER)[0]


# What a token is


def test_a_token_says_what_it_was_issued_for(tokens: Tokens, clock: FakeClock) -> None:
    """S3-02, S2-51: exp - iat is the lifetime, in whole seconds."""
    user, session = uuid4(), uuid4()
    token, claims = tokens.issue(user, session, lifetime=QUARTER)
    assert tokens.verify(token) == claims
    assert (claims.sub, claims.sid, claims.iat) == (user, session, seconds(clock))
    assert claims.exp - claims.iat == 900
    assert tokens.issue(user, session, lifetime=timedelta(minutes=1))[1].exp - claims.iat == 60


def test_header_and_claims_are_the_promised_ones(keys: Keys, tokens: Tokens) -> None:
    """S3-52: typ at+jwt, our alg and kid; iss, aud, sub, sid, jti, iat, exp."""
    token, claims = tokens.issue(UUID(int=1), UUID(int=2), lifetime=QUARTER)
    header = jwt.get_unverified_header(token)
    assert header == {"alg": keys.signing.algorithm, "typ": "at+jwt", "kid": keys.signing.kid}
    assert jwt.decode(token, options={"verify_signature": False}) == {
        "iss": "itdesk",
        "aud": "itdesk",
        "sub": str(UUID(int=1)),
        "sid": str(UUID(int=2)),
        "jti": claims.jti,
        "iat": claims.iat,
        "exp": claims.exp,
    }


def test_the_published_key_verifies_a_token_by_default_rs256(tmp_path: Path) -> None:
    """S3-52: the default algorithm is RS256, and the JWKS is enough to check a token."""
    tokens = Tokens(KeyFile(tmp_path / "jwt.pem").load_or_create(), FakeClock())
    token = issue(tokens)
    (published,) = tokens.jwks()["keys"]
    assert set(published) == {"kty", "n", "e", "alg", "use", "kid"}
    assert published["alg"] == jwt.get_unverified_header(token)["alg"] == "RS256"
    key = jwt.PyJWK(published)
    options: Any = {"verify_exp": False, "verify_iat": False}
    assert jwt.decode(token, key, ["RS256"], audience="itdesk", options=options)["iss"] == "itdesk"


def test_every_token_has_its_own_id(tokens: Tokens) -> None:
    user, session = uuid4(), uuid4()
    ids = {tokens.issue(user, session, lifetime=QUARTER)[1].jti for _ in range(50)}
    assert len(ids) == 50


@pytest.mark.parametrize("lifetime", [0, -1, 400 * 86400])
def test_a_senseless_lifetime_is_a_bug_of_the_caller(tokens: Tokens, lifetime: int) -> None:
    with pytest.raises(ValueError, match="lifetime"):
        tokens.issue(uuid4(), uuid4(), lifetime=timedelta(seconds=lifetime))


# S-10: what is refused


def test_hostile_tokens_are_refused(keys: Keys, tokens: Tokens, clock: FakeClock) -> None:
    """S-10: 0 accepted, nothing but the two errors raised, each within 50 ms."""
    now = seconds(clock)
    hostile = corpus(keys, now=now)
    assert len(hostile) >= 80
    accepted, expired, slow = [], [], []
    for name, token in hostile:
        started = time.perf_counter()
        try:
            tokens.verify(token)
            accepted.append(name)
        except ExpiredToken:
            expired.append(name)
        except InvalidToken:
            pass
        if time.perf_counter() - started > 0.05:
            slow.append(name)
    assert not accepted
    assert not slow
    assert expired == ["exp 1 s ago", "exp now", "exp a year ago"]


def test_the_corpus_is_refused_for_its_flaws_alone(
    keys: Keys, tokens: Tokens, clock: FakeClock
) -> None:
    """S-10: the same forge without a flaw is accepted."""
    user, session = uuid4(), uuid4()
    token = control(keys, sub=user, sid=session, now=seconds(clock))
    claims = tokens.verify(token)
    assert (claims.sub, claims.sid) == (user, session)


def test_strictness_does_not_rest_on_the_library(
    keys: Keys, tokens: Tokens, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-10: form, header and claims are checked by us, even if PyJWT took any signature."""
    monkeypatch.setattr(jwt.PyJWS, "decode", lambda *args, **kwargs: b"")
    accepted = set()
    for name, token in corpus(keys, now=seconds(clock)):
        with suppress(InvalidToken, ExpiredToken):
            tokens.verify(token)
            accepted.add(name)
    assert "signature of zeros" in accepted, "the library is blind"
    signature = r"signature (of|with|longer|reversed)|truncated by|trailing data|payload exchanged"
    signer = r"our alg, HMAC with|.* by our key, called|access token signed with a derived secret"
    signer += r"|other (key|key as RS256) under our kid|other Ed25519 key|HS256 with"
    assert [name for name in accepted if not re.match(f"{signature}|{signer}", name)] == []


def test_a_refused_token_does_not_get_better(keys: Keys, tokens: Tokens, clock: FakeClock) -> None:
    """S-10: nothing about a bad token is remembered in its favour."""
    for name, token in corpus(keys, now=seconds(clock)):
        for _ in range(2):
            with pytest.raises(InvalidToken if "exp" not in name else (InvalidToken, ExpiredToken)):
                tokens.verify(token)


def test_clocks_of_two_nodes_may_differ_a_little(
    keys: Keys, tokens: Tokens, clock: FakeClock
) -> None:
    forge = Forge(keys, now=seconds(clock))
    for claims in ({"iat": forge.now + 5}, {"nbf": forge.now + 5}, {"nbf": forge.now - 60}):
        assert isinstance(tokens.verify(forge.token(None, claims)), Claims)
    for claims in ({"iat": forge.now + 6}, {"nbf": forge.now + 6}):
        with pytest.raises(InvalidToken):
            tokens.verify(forge.token(None, claims))


def test_a_claim_of_a_later_version_is_ignored(
    keys: Keys, tokens: Tokens, clock: FakeClock
) -> None:
    """During a rolling upgrade a newer node may say more than we know."""
    assert tokens.verify(Forge(keys, now=seconds(clock)).token(None, {"scope": "x"}))


@settings(max_examples=300, deadline=None)
@given(token=st.text(max_size=300) | st.from_regex(r"[\w-]+={0,2}\.[\w-]*\.[\w-]*\s?"))
def test_any_text_at_all_is_answered_with_invalid_token(token: str) -> None:
    """S-10: 0 x 5xx."""
    with pytest.raises(InvalidToken):
        Tokens(Keys(SIGNERS["EdDSA"]), FakeClock()).verify(token)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_character_voids_a_token(data: st.DataObject) -> None:
    """S-10: no two texts are the same token."""
    clock = FakeClock()
    tokens = Tokens(Keys(SIGNERS[data.draw(st.sampled_from(list(SIGNERS)))]), clock)
    token = issue(tokens)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters().filter(lambda char: char != token[at]))
    with pytest.raises(InvalidToken):
        tokens.verify(token[:at] + other + token[at + 1 :])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(["iss", "aud", "sub", "sid", "jti", "iat", "exp"]), value=json_values)
def test_a_signed_claim_of_any_kind_never_breaks_the_verifier(name: str, value: object) -> None:
    """S-10: also what our own key signed is checked."""
    clock = FakeClock()
    keys = Keys(SIGNERS["EdDSA"])
    forge = Forge(keys, now=seconds(clock))
    token = forge.join(dump(forge.header), dump({**forge.claims, name: value}))
    try:
        claims = Tokens(keys, clock).verify(token)
    except (InvalidToken, ExpiredToken):
        return
    assert type(getattr(claims, name)) is type(value)


# The cache


async def test_a_cached_token_expires_at_its_second(tokens: Tokens, clock: FakeClock) -> None:
    """T12: an expired token is refused at once, however often it was good before."""
    token = issue(tokens)
    tokens.verify(token)
    await clock.advance(899)
    tokens.verify(token)
    await clock.advance(1)
    for _ in range(2):
        with pytest.raises(ExpiredToken):
            tokens.verify(token)


def test_a_warm_token_is_not_verified_again(tokens: Tokens, checked: list[str]) -> None:
    """T12: a hit costs no signature; `forget` makes it cost one again."""
    token = issue(tokens)
    assert tokens.verify(token) == tokens.verify(token) == tokens.verify(token)
    assert checked == [token]
    tokens.forget(token)
    tokens.verify(token)
    assert checked == [token, token]
    tokens.forget("never seen \ud800")


def test_the_cache_is_bounded_and_keeps_the_busy(
    keys: Keys, clock: FakeClock, checked: list[str]
) -> None:
    tokens = Tokens(keys, clock, cache_size=8)
    busy = issue(tokens)
    others = [issue(tokens) for _ in range(40)]
    for other in others:
        tokens.verify(busy)
        tokens.verify(other)
    assert checked.count(busy) == 1
    checked.clear()
    for token in [busy, *others[-7:]]:
        tokens.verify(token)
    assert not checked
    for other in others[:-7]:
        tokens.verify(other)
    assert checked == others[:-7]


def test_a_warm_token_costs_microseconds(tokens: Tokens) -> None:
    """T12: 5 % of a read is about 5 us; ten times that here, for a busy machine."""
    token = issue(tokens)
    tokens.verify(token)
    rounds = []
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(100):
            tokens.verify(token)
        rounds.append((time.perf_counter() - started) / 100)
    assert min(rounds) < 50e-6


# Keys


def test_new_keys_void_what_the_old_ones_vouched_for(tokens: Tokens) -> None:
    token = issue(tokens)
    tokens.verify(token)
    tokens.replace_keys(Keys(ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(InvalidToken):
        tokens.verify(token)
    tokens.verify(issue(tokens))


async def test_a_retired_key_verifies_within_its_overlap_only(
    tmp_path: Path, clock: FakeClock
) -> None:
    """S-10: rotation; also for a token that is in the cache already."""
    path = tmp_path / "jwt.pem"
    before = KeyFile(path).load_or_create()
    old = issue(Tokens(before, clock))
    later = clock.now() + timedelta(minutes=5)
    keys = KeyFile(path).rotate(now=clock.now(), not_after=later)
    tokens, fresh = Tokens(keys, clock), Tokens(KeyFile(path).load_or_create(), clock)
    new = issue(tokens)
    assert keys.signing.kid != before.signing.kid
    assert jwt.get_unverified_header(new)["kid"] == keys.signing.kid
    assert [key["kid"] for key in tokens.jwks()["keys"]] == [keys.signing.kid, before.signing.kid]
    await clock.advance(299)
    for verifier in (tokens, fresh):
        verifier.verify(old)
        verifier.verify(new)
    await clock.advance(1)
    for verifier in (tokens, fresh, Tokens(KeyFile(path).load_or_create(), clock)):
        with pytest.raises(InvalidToken):
            verifier.verify(old)
        verifier.verify(new)
    assert [key["kid"] for key in tokens.jwks()["keys"]] == [keys.signing.kid]


async def test_two_rotations_in_a_row_lock_nobody_out(tmp_path: Path, clock: FakeClock) -> None:
    """S-10: each old key verifies until its own overlap ends, and is then gone from the file."""
    path = tmp_path / "jwt.pem"
    first = KeyFile(path).load_or_create()
    end = clock.now() + timedelta(minutes=5)
    second = KeyFile(path).rotate(now=clock.now(), not_after=end)
    await clock.advance(200)
    end = clock.now() + timedelta(minutes=5)
    third = KeyFile(path, "EdDSA").rotate(now=clock.now(), not_after=end)
    kids = [keys.signing.kid for keys in (third, second, first)]
    assert [key["kid"] for key in third.jwks(clock.now())["keys"]] == kids
    await clock.advance(101)
    assert [key["kid"] for key in third.jwks(clock.now())["keys"]] == kids[:2]
    fourth = KeyFile(path, "EdDSA").rotate(now=clock.now(), not_after=end)
    assert [key.kid for key in fourth.retired] == kids[:2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_rotation_keeps_the_mode_that_lets_the_daemon_read(
    tmp_path: Path, clock: FakeClock
) -> None:
    path = tmp_path / "jwt.pem"
    KeyFile(path).load_or_create()
    path.chmod(0o640)
    KeyFile(path).rotate(now=clock.now(), not_after=clock.now())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_key_is_retired_before_its_time(tmp_path: Path, clock: FakeClock) -> None:
    """S-10: what a stolen key signed is refused at once."""
    file = KeyFile(tmp_path / "jwt.pem", "EdDSA")
    stolen = file.load_or_create()
    keys = file.rotate(now=clock.now(), not_after=clock.now() + timedelta(hours=1))
    tokens, token = Tokens(keys, clock), issue(Tokens(stolen, clock))
    tokens.verify(token)
    with pytest.raises(ConfigError, match="rotate first"):
        file.retire(keys.signing.kid, now=clock.now())
    with pytest.raises(NotFound):
        file.retire("no such key", now=clock.now())
    after = file.retire(stolen.signing.kid, now=clock.now())
    assert after.signing == keys.signing and after.retired == ()
    tokens.replace_keys(after)
    with pytest.raises(InvalidToken):
        tokens.verify(token)


def test_derived_secrets_survive_rotations(tmp_path: Path, clock: FakeClock) -> None:
    """Links and second factors that exist go on working, whatever becomes of the signing key."""
    file = KeyFile(tmp_path / "jwt.pem", "EdDSA")
    before = file.load_or_create().derive("storage-urls")
    for _ in range(2):
        keys = file.rotate(now=clock.now(), not_after=clock.now() + timedelta(hours=1))
        assert keys.derive("storage-urls") == before
    retired = file.retire(keys.retired[0].kid, now=clock.now())
    assert retired.derive("storage-urls") == before == file.load_or_create().derive("storage-urls")
    assert Keys(keys.private).derive("storage-urls") != before


def test_what_earlier_versions_derived_is_still_the_same() -> None:
    """HKDF of RFC 5869, over the secret or the PKCS8 form of the key."""
    info = b"itdesk secret for storage-urls"
    whole = HKDF(algorithm=SHA256(), length=32, salt=None, info=info)
    assert Keys(SIGNERS["HS256"]).derive("storage-urls") == whole.derive(SIGNERS["HS256"])


async def test_a_rotated_file_is_taken_over_without_a_restart(
    tmp_path: Path, clock: FakeClock
) -> None:
    """S-10: a daemon that shares the file learns of the new key, and keeps its own if it must."""
    file = KeyFile(tmp_path / "jwt.pem", "EdDSA")
    tokens = Tokens(file.load_or_create(), clock, file=file)
    assert not await tokens.reload()
    old = issue(tokens)
    keys = file.rotate(now=clock.now(), not_after=clock.now() + timedelta(hours=1))
    new = issue(Tokens(keys, clock))
    with pytest.raises(UnknownKey):
        tokens.verify(new)
    assert await tokens.reload() and not await tokens.reload()
    tokens.verify(new)
    tokens.verify(old)
    file.path.write_text("-----BEGIN NONSENSE")
    assert not await tokens.reload()
    tokens.verify(new)
    file.path.unlink()
    assert not await tokens.reload()
    tokens.verify(new)
    assert not await Tokens(Keys(SIGNERS["HS256"]), clock).reload()


def test_hostile_tokens_are_refused_during_a_rotation(clock: FakeClock) -> None:
    """S-10: a key of another kind beside ours opens no confusion between the two."""
    now = seconds(clock)
    until = float(now + 300)
    for ours, theirs in (("RS256", "HS256"), ("RS256", "EdDSA"), ("HS256", "RS256")):
        old = Keys(SIGNERS[theirs])
        retired = Key.of(old.signing.public, not_after=until)
        keys = Keys(SIGNERS[ours], retired=[retired])
        tokens = Tokens(keys, clock)
        tokens.verify(control(old, now=now))
        mixed = [
            Forge(keys, now=now).token({"kid": retired.kid}),
            Forge(keys, now=now).token({"kid": retired.kid, "alg": retired.algorithm}),
            Forge(old, now=now).token({"kid": keys.signing.kid}),
            Forge(old, now=now).token({"kid": keys.signing.kid, "alg": keys.signing.algorithm}),
        ]
        for token in [token for _, token in corpus(keys, now=now)] + mixed:
            with pytest.raises((InvalidToken, ExpiredToken)):
                tokens.verify(token)


@pytest.mark.parametrize("algorithm", ["RS256", "EdDSA"])
def test_a_key_file_is_made_once_and_readable_by_us_alone(tmp_path: Path, algorithm: str) -> None:
    path = tmp_path / "state" / "jwt.pem"
    mask = os.umask(0)
    try:
        made = KeyFile(path, algorithm).load_or_create()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert made.signing.algorithm == algorithm
    assert KeyFile(path, algorithm).load_or_create().signing == made.signing
    assert not path.with_name("jwt.pem.new").exists()


def _create(path: Path, start: Barrier, kids: Any) -> None:
    start.wait(30)
    kids.put(KeyFile(path).load_or_create().signing.kid)


def test_processes_starting_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """Tokens are signed with the daemon's key, whoever issues them."""
    context = multiprocessing.get_context("spawn")
    start, kids = context.Barrier(4), context.Queue()
    path = tmp_path / "jwt.pem"
    processes = [context.Process(target=_create, args=(path, start, kids)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {kids.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    kids.close()
    assert found == {KeyFile(path).load_or_create().signing.kid}


def test_what_a_crash_left_behind_is_not_taken_for_a_key(tmp_path: Path) -> None:
    path = tmp_path / "jwt.pem"
    path.with_name("jwt.pem.new").write_text("-----BEGIN PRIV")
    keys = KeyFile(path).load_or_create()
    assert KeyFile(path).load_or_create().signing == keys.signing


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o604, 0o602])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "jwt.pem"
    path.write_text(pem(RSA_KEY))
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyFile(path).load_or_create()
    path.chmod(0o440)  # a systemd credential
    KeyFile(path).load_or_create()


def test_a_damaged_key_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "jwt.pem"
    for content in ("", "hello", pem(RSA_KEY)[:300], pem(RSA_KEY) + "not-after: soon\nx"):
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=r"auth\.jwt_key_file"):
            KeyFile(path).load_or_create()
        assert path.read_text() == content


def test_a_key_of_another_algorithm_than_the_setting_is_refused(tmp_path: Path) -> None:
    """X5: the algorithm is pinned."""
    path = tmp_path / "jwt.pem"
    KeyFile(path, "EdDSA").load_or_create()
    with pytest.raises(ConfigError, match=r"EdDSA.*RS256"):
        KeyFile(path).load_or_create()
    with pytest.raises(ConfigError, match=r"auth\.jwt_secret"):
        KeyFile(tmp_path / "other.pem", "HS256").load_or_create()
    assert not (tmp_path / "other.pem").exists()


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_a_pem_private_key_given_as_the_secret_signs(tmp_path: Path, form: str) -> None:
    """X5, S3-54: also on one line, as environment files have it."""
    text = pem(RSA_KEY, form)
    for secret in (text, text.replace("\n", "\\n"), f"\n{text}\n"):
        keys, _ = configured(algorithm="RS256", secret=secret, path=tmp_path / "jwt.pem")
        assert keys.signing == Keys(RSA_KEY).signing
    assert not (tmp_path / "jwt.pem").exists()
    edwards = Keys.from_secret(pem(SIGNERS["EdDSA"]), algorithm="EdDSA")
    assert edwards.signing.kid == Keys(SIGNERS["EdDSA"]).signing.kid


def test_settings_choose_the_key(tmp_path: Path) -> None:
    """X5: HS256 if the algorithm is set so and a secret is given; else the key file."""
    path, secret = tmp_path / "jwt.pem", "s" * 32
    hs256, _ = configured(algorithm="HS256", secret=secret, path=path)
    assert hs256.signing.algorithm == "HS256"
    assert not path.exists()
    rs256, _ = configured(algorithm="RS256", secret=secret, path=path)
    assert rs256.signing == configured(algorithm="RS256", secret=None, path=path)[0].signing
    with pytest.raises(ConfigError, match="HS256"):
        configured(algorithm="HS256", secret=None, path=path)


def test_secrets_that_cannot_sign_are_refused() -> None:
    """S2-17, X5: short ones, public keys as HMAC secrets, weak or foreign keys."""
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    curve = ec.generate_private_key(ec.SECP256R1())
    public = RSA_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    locked = RSA_KEY.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"pw"),
    )
    for algorithm, secret in {
        "HS256": ("s" * 31, "", public.decode(), pem(RSA_KEY)),
        "RS256": ("s" * 64, pem(weak), pem(curve), public.decode(), locked.decode(), pem(curve)),
        "EdDSA": (pem(RSA_KEY),),
    }.items():
        for text in secret:
            with pytest.raises(ConfigError):
                Keys.from_secret(text, algorithm=algorithm)
    assert Keys.from_secret("\u00e4" * 16, algorithm="HS256"), "32 bytes, not characters"


def test_key_ids_are_thumbprints() -> None:
    """RFC 7638 section 3.1 and RFC 8037 appendix A.3 give these."""
    modulus = int.from_bytes(
        jwt.utils.base64url_decode(
            "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_B"
            "JECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_F"
            "DW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4"
            "vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
        ),
        "big",
    )
    public = rsa.RSAPublicNumbers(65537, modulus).public_key()
    assert Key.of(public).kid == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    edwards = jwt.utils.base64url_decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
    okp = ed25519.Ed25519PublicKey.from_public_bytes(edwards)
    assert Key.of(okp).kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_an_hmac_secret_is_published_nowhere(clock: FakeClock) -> None:
    secret = SIGNERS["HS256"]
    keys = Keys(secret)
    assert keys.jwks(clock.now()) == {"keys": []}
    assert Key.of(secret).kid not in {
        b64(hashlib.sha256(secret).digest()),
        b64(hashlib.sha256(dump({"k": b64(secret), "kty": "oct"})).digest()),
        b64(keys.derive("key id")),
    }
    assert repr(secret) not in repr(keys.signing)


def test_derived_secrets_differ_by_purpose_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "jwt.pem"
    keys, again = KeyFile(path).load_or_create(), KeyFile(path).load_or_create()
    assert keys.derive("upload") == again.derive("upload")
    assert len({keys.derive("upload"), keys.derive("download"), keys.derive("")}) == 3
    assert {len(Keys(signer).derive("x")) for signer in SIGNERS.values()} == {32}
    forms = (pem(RSA_KEY), pem(RSA_KEY, "TraditionalOpenSSL"))
    assert len({Keys.from_secret(form).derive("x") for form in forms}) == 1
    assert Keys(RSA_KEY).derive("x") != keys.derive("x")


async def test_a_token_signed_by_another_process_after_a_rotation_is_good_at_once(
    database_url: str, tmp_path: Path
) -> None:
    """S-10: nobody waits until the file is looked at the next time."""
    async with opened(Office(database_url)) as office:
        signed = await office.sign_in(await office.user("ann"))
        claims = office.tokens.verify(signed.access_token)
        file = KeyFile(tmp_path / "jwt.pem", "EdDSA")
        ours = Tokens(file.load_or_create(), office.clock, file=file)
        admission = Admission(office.db, ours, office.auth, office.clock, remembered=10)
        await ours.reload()
        now = office.clock.now()
        rotated = Tokens(file.rotate(now=now, not_after=now + QUARTER), office.clock)
        token, _ = rotated.issue(claims.sub, claims.sid, lifetime=QUARTER)
        assert (await admission.admit(token))[0].user_id == claims.sub
        foreign = Tokens(Keys(SIGNERS["EdDSA"]), office.clock)
        with pytest.raises(InvalidToken):
            await admission.admit(foreign.issue(claims.sub, claims.sid, lifetime=QUARTER)[0])


# URLs of our own


@pytest.fixture
def urls(clock: FakeClock) -> UrlSigner:
    return UrlSigner(Keys(RSA_KEY).derive("storage"), clock)


async def test_a_signed_url_opens_until_it_expires(urls: UrlSigner, clock: FakeClock) -> None:
    payload = {"key": "tickets/1/\u00e4", "method": "PUT", "size": 5, "exp": "mine"}
    token = urls.sign(payload, timedelta(seconds=900))
    assert token.isascii()
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    await clock.advance(899)
    assert urls.open(token) == payload
    await clock.advance(1)
    with pytest.raises(Forbidden) as refused:
        urls.open(token)
    assert refused.value.code == "E_STORAGE_URL_EXPIRED"


def test_a_forged_url_is_refused(urls: UrlSigner, clock: FakeClock) -> None:
    token = urls.sign({"key": "a"}, timedelta(seconds=60))
    body, _, mac = token.partition(".")
    later = b64(dump([seconds(clock) + 9999, {"key": "b"}]))
    foreign = UrlSigner(Keys(RSA_KEY).derive("mail"), clock)
    forged = [
        "",
        ".",
        body,
        f"{body}.",
        f".{mac}",
        f"{later}.{mac}",
        f"{later}.{b64(hmac.digest(b'', later.encode(), 'sha256'))}",
        f"{token}=",
        f"{token} ",
        f"{token}\n",
        f" {token}",
        f"{token}.",
        f"{token}.{mac}",
        f"{body}=.{mac}",
        f"{body}\u00e4.{mac}",
        f"{body}.{mac}\ud800",
        mac[:-1],
        token[:-1],
        token.swapcase(),
        "A" * 2**20,
        "A" * 2**20 + f".{mac}",
        foreign.sign({"key": "a"}, timedelta(seconds=60)),
        control(Keys(RSA_KEY)),
    ]
    # The last character of a MAC carries two unused bits: other spellings of the same bytes.
    forged += [token[:-1] + char for char in "ABCDwxyz0189-_" if char != token[-1]]
    for text in forged:
        with pytest.raises(Forbidden) as refused:
            urls.open(text)
        assert refused.value.code == "E_STORAGE_URL_INVALID", text


def test_an_endless_url_is_not_even_hashed(
    urls: UrlSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    real = hmac.digest

    def spy(key: bytes, body: bytes, digest: str) -> bytes:
        hashed.append(len(body))
        return real(key, body, digest)

    monkeypatch.setattr(hmac, "digest", spy)
    with pytest.raises(Forbidden):
        urls.open("A" * 2**20 + ".A")
    assert max(hashed, default=0) <= 4096


def test_an_expired_forgery_is_invalid_not_expired(urls: UrlSigner) -> None:
    """Whether a link was ever good is told only to who holds it."""
    body = b64(json.dumps([1, {}]).encode())
    with pytest.raises(Forbidden) as refused:
        urls.open(f"{body}.{b64(bytes(32))}")
    assert refused.value.code == "E_STORAGE_URL_INVALID"


def test_url_secrets_and_payloads_have_a_size(urls: UrlSigner, clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        UrlSigner(b"short", clock)
    with pytest.raises(ValueError, match="too long"):
        urls.sign({"x": "y" * 4096}, timedelta(seconds=1))


# Refresh tokens


def test_refresh_tokens_are_opaque_and_stored_hashed() -> None:
    """256 bits, hashed at rest."""
    token, digest = new_refresh_token()
    assert token.startswith("rt_")
    assert len(jwt.utils.base64url_decode(token.removeprefix("rt_"))) == 32
    assert digest == hash_refresh_token(token) == hashlib.sha256(token.encode()).digest()
    assert len({new_refresh_token()[0] for _ in range(100)}) == 100


def test_what_cannot_be_a_refresh_token_is_refused(tokens: Tokens) -> None:
    token, _ = new_refresh_token()
    for text in (
        "",
        "rt_",
        token.removeprefix("rt_"),
        token[:-1],
        token + "A",
        token + "\n",
        f" {token}",
        token.upper(),
        token[:-1] + "\ud800",
        token[:-1] + "\u0661",
        "A" * 2**20,
        issue(tokens),
    ):
        with pytest.raises(InvalidToken):
            hash_refresh_token(text)
