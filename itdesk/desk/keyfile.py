"""The file with the keys: one private key that signs, and public ones that verify for a while.

It is replaced as a whole, under a lock, so that no crash and no second daemon sees half a
rotation. After the private key follow the root of the derived secrets, once the first key is gone,
and the retired keys with the time until which each verifies.
"""

import base64
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from itdesk.desk.keys import PEM_MARK, RSA_BITS, Key, Keys, private_key
from itdesk.errors import ConfigError, NotFound
from itdesk.frozen import frozen

LARGEST = 65_536
MOST_RETIRED = 16
_RETIRED_MARK = b"not-after: "
_ROOT_MARK = b"root: "


@frozen
class KeyFile:
    """Where the keys lie, and for which algorithm."""

    path: Path
    algorithm: str = "RS256"

    def load_or_create(self) -> Keys:
        """Return the keys of the file, made on first use; all processes get the same."""
        content = self._read()
        if content is None:
            with self._locked():
                # Somebody else may have made it while we waited for the lock.
                content = self._read() or self._write(_generated(self.algorithm))
        return self._parse(content)

    def rotate(self, *, now: datetime, not_after: datetime) -> Keys:
        """Sign with a new key from now on; the one before verifies until then."""
        # Made before anything is held: it takes a while.
        content = _generated(self.algorithm)

        def change(old: Keys) -> bytes:
            last = Key.of(old.signing.public, not_after=int(not_after.timestamp()))
            kept = [last, *old.retired][:MOST_RETIRED]
            return content + _rest(old.root, _living(kept, now))

        return self._change(change)

    def retire(self, kid: str, *, now: datetime) -> Keys:
        """Let a key that signs no more verify nothing any more, before its time is over."""

        def change(old: Keys) -> bytes:
            if kid == old.signing.kid:
                raise ConfigError(f"{kid} is the key that signs: rotate first, then retire it")
            kept = _living([key for key in old.retired if key.kid != kid], now)
            if len(kept) == len(_living(old.retired, now)):
                raise NotFound.of("key")
            encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            assert not isinstance(old.private, bytes)
            pem = old.private.private_bytes(encoding, form, serialization.NoEncryption())
            return pem + _rest(old.root, kept)

        return self._change(change)

    def mark(self) -> tuple[int, ...] | None:
        """Return what is another when the file was changed; None when it cannot be looked at."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    @property
    def where(self) -> str:
        """Return how messages call this file."""
        return f"auth.jwt_key_file {self.path}"

    def _change(self, change: Callable[[Keys], bytes]) -> Keys:
        with self._locked():
            old = self._read()
            if old is None:
                return self._parse(self._write(_generated(self.algorithm)))
            return self._parse(self._write(change(self._parse(old, any_algorithm=True))))

    def _parse(self, content: bytes, *, any_algorithm: bool = False) -> Keys:
        head, *retired = content.split(_RETIRED_MARK)
        pem, _, root = head.partition(_ROOT_MARK)
        keys = Keys(
            private_key(self.where, pem),
            retired=[self._retired(text) for text in retired],
            root=self._root(root) if root else None,
        )
        if not any_algorithm:
            keys.require_algorithm(self.where, self.algorithm)
        return keys

    def _root(self, text: bytes) -> bytes:
        try:
            root = base64.b64decode(text.strip(), validate=True)
        except ValueError:
            root = b""
        if len(root) != 32:
            raise ConfigError(f"{self.where}: the line root: in it cannot be read")
        return root

    def _retired(self, text: bytes) -> Key:
        deadline, _, pem = text.partition(b"\n")
        try:
            not_after, public = int(deadline), serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise ConfigError(f"{self.where}: the retired key in it cannot be read") from exc
        if not isinstance(public, RSAPublicKey | Ed25519PublicKey):
            raise ConfigError(f"{self.where}: only RSA and Ed25519 keys can verify")
        return Key.of(public, not_after=not_after)

    def _read(self) -> bytes | None:
        try:
            with open(self.path, "rb") as file:
                # A systemd credential is readable by its group, so that much is allowed.
                if os.fstat(file.fileno()).st_mode & 0o027:
                    raise ConfigError(f"{self.where}: others may read it; chmod 600 it")
                return file.read(LARGEST)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise ConfigError(f"{self.where}: {exc.strerror}") from exc

    def _write(self, content: bytes) -> bytes:
        """Replace the file at once, readable by those who read it before; under the lock."""
        path = self.path
        fresh = path.with_name(path.name + ".new")
        try:
            before = path.stat() if path.exists() else None
            fresh.unlink(missing_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                if before is not None:
                    # Else the daemon, who may be somebody else, could not read it any more.
                    if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                        os.fchown(descriptor, before.st_uid, before.st_gid)
                    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            fresh.replace(path)
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(directory)
            os.close(directory)
        except OSError as exc:
            raise ConfigError(
                f"{self.where} cannot be replaced: {exc.strerror}; do it as its owner"
            ) from exc
        return content

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.touch(mode=0o600)
            file = lock.open("rb")
        except OSError as exc:
            raise ConfigError(f"{self.where}: {exc.strerror}") from exc
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def configured(*, algorithm: str, secret: str | None, path: Path) -> tuple[Keys, KeyFile | None]:
    """Return the keys of the settings, and the file that they are from unless a secret says all."""
    if secret and (algorithm == "HS256" or PEM_MARK in secret):
        return Keys.from_secret(secret, algorithm=algorithm), None
    file = KeyFile(path, algorithm)
    return file.load_or_create(), file


def _living(keys: Iterable[Key], now: datetime) -> list[Key]:
    return [key for key in keys if now.timestamp() < key.not_after]


def _rest(root: bytes, retired: Iterable[Key]) -> bytes:
    """Return what follows the private key, in the one file, so that no crash can part them."""
    content = _ROOT_MARK + base64.b64encode(root) + b"\n"
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    for key in retired:
        assert not isinstance(key.public, bytes)
        content += _RETIRED_MARK + b"%d\n" % int(key.not_after)
        content += key.public.public_bytes(encoding, form)
    return content


def _generated(algorithm: str) -> bytes:
    if algorithm not in ("RS256", "EdDSA"):
        raise ConfigError(f"auth.jwt_algorithm: {algorithm} needs auth.jwt_secret to be set")
    edwards = Ed25519PrivateKey.generate() if algorithm == "EdDSA" else None
    key = edwards or rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())
