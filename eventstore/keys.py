"""Ed25519 keys with names: as text, the way Go's golang.org/x/mod/sumdb/note writes them, and in files."""

from __future__ import annotations

import base64
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from eventstore.database import fsync_directory
from eventstore.errors import KeyFileRefused, KeyMalformed

KEY_SIZE_BYTES: Final = 32
KEY_ID_SIZE_BYTES: Final = 4

# Room for many public keys, of which each has some 120 bytes.
KEY_FILE_SIZE_MAX_BYTES: Final = 65_536

_ED25519: Final = b"\x01"
_PRIVATE: Final = "PRIVATE+KEY+"
_KEY_ID: Final = re.compile(r"[0-9a-f]{8}")

# The y coordinates of the points of small order: under such a key anybody can sign anything.
_FIELD: Final = 2**255 - 19
_ORDER_EIGHT: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER: Final = frozenset((0, 1, _FIELD - 1, _ORDER_EIGHT, _FIELD - _ORDER_EIGHT))


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key and its name."""

    name: str
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        """What tells keys of one name apart. It is too short to prove anything."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:KEY_ID_SIZE_BYTES]

    @property
    def key(self) -> str:
        """The name and the id, as errors name the key, and as its text begins."""
        return key_text(self.name, self.key_id)

    def is_signature(self, signature: bytes, text: bytes) -> bool:
        """Whether the key made this signature of the text. Source: RFC 8032."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key and its name. Printing it shows no secret."""

    name: str
    private_key: Ed25519PrivateKey

    @property
    def verifier(self) -> Verifier:
        """The public key."""
        return Verifier(self.name, self.private_key.public_key().public_bytes_raw())


def generate_key(name: str, seed: bytes) -> Signer:
    """The key of a name made of 32 random bytes. Raises ValueError."""
    if len(seed) != KEY_SIZE_BYTES:
        raise ValueError(f"a key is made of {KEY_SIZE_BYTES} random bytes, not of {len(seed)}")
    if not is_name(name):
        raise ValueError(f"{name!r} cannot name a key: no spaces, control characters or +, and not empty")
    return Signer(name, Ed25519PrivateKey.from_private_bytes(seed))


def format_vkey(verifier: Verifier) -> str:
    """The public key as text: name+id+base64, on one line. Inverse: parse_vkey."""
    return _format_key(verifier, verifier.public_key)


def parse_vkey(text: str) -> Verifier:
    """The public key of a text. Raises KeyMalformed, also for one under which anybody can sign."""
    name, key_id, key = _parse_key(text, "public key")
    verifier = Verifier(name, key)
    if verifier.key_id != key_id:
        raise KeyMalformed("public key", "its id is not that of its name and key")
    # The highest bit is the sign of x; y may be written unreduced.
    if int.from_bytes(key, "little") % 2**255 % _FIELD in _SMALL_ORDER:
        raise KeyMalformed("public key", "it is a point of small order, under which anybody can sign")
    return verifier


def format_private_key(signer: Signer) -> str:
    """The private key as text, which is a secret: PRIVATE+KEY+name+id+base64. Inverse: parse_private_key."""
    return _PRIVATE + _format_key(signer.verifier, signer.private_key.private_bytes_raw())


def parse_private_key(text: str) -> Signer:
    """The private key of a text. Raises KeyMalformed, which quotes nothing of it."""
    if not text.startswith(_PRIVATE):
        raise KeyMalformed("private key", f"it does not begin with {_PRIVATE}")
    name, key_id, seed = _parse_key(text.removeprefix(_PRIVATE), "private key")
    signer = generate_key(name, seed)
    if signer.verifier.key_id != key_id:
        raise KeyMalformed("private key", "its id is not that of its name and key")
    return signer


def create_key_file(path: Path, signer: Signer) -> None:
    """Writes a private key into a new file of mode 0600, durably; never over one that is there.

    The text is complete and on disk before the file gets its name, so a crash leaves a whole key or none, and
    at most a draft beside it, which was never used. Raises KeyFileRefused.
    """
    try:
        # Made with mode 0600 from its first moment on, whatever the umask.
        descriptor, draft_name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    draft = Path(draft_name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(format_private_key(signer) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, this fails where the name is taken.
        os.link(draft, path)
        draft.unlink()
        fsync_directory(path.parent)
        # Durable from here on.
    except FileExistsError:
        raise KeyFileRefused(
            path, "is there already, and a key is never overwritten", "use it, or move it away first"
        ) from None
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def load_key_file(path: Path) -> Signer:
    """The private key in a file. Raises KeyFileRefused, also where others than its owner may read it.

    Refused and not only warned of: what a key signs that others may have read proves nothing.
    """
    text = _read_key_file(path, is_secret=True)
    try:
        return parse_private_key(text.removesuffix("\n"))
    except KeyMalformed as error:
        raise KeyFileRefused(
            path, f"holds no private key: {error.reason}", "restore it, or move it away"
        ) from None


def load_vkey_file(path: Path) -> tuple[Verifier, ...]:
    """The public keys in a file, one a line; blank lines and those that begin with # are skipped.

    A log whose key was changed has several. Raises KeyFileRefused.
    """
    lines = (line.strip() for line in _read_key_file(path, is_secret=False).splitlines())
    try:
        keys = tuple(parse_vkey(line) for line in lines if line and not line.startswith("#"))
    except KeyMalformed as error:
        raise KeyFileRefused(
            path, f"holds a line that is no public key: {error.reason}", "give what `log public-key` printed"
        ) from None
    if not keys:
        raise KeyFileRefused(path, "holds no public key", "give what `log public-key` printed")
    return keys


def key_text(name: str, key_id: bytes) -> str:
    """Name and id of a key in one text."""
    return f"{name}+{key_id.hex()}"


def is_name(name: str) -> bool:
    """Whether a text can name a key: not empty, no Unicode spaces, no plus."""
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " for c in name)


def decode_base64(text: str) -> bytes:
    """The bytes of standard base64 as encoders write it: padded, no blanks, no stray bits at the end.

    So bytes have one text only, and proofs that differ say different things. Raises ValueError.
    """
    decoded = base64.b64decode(text, validate=True)
    if base64.b64encode(decoded).decode() != text:
        raise ValueError("it is not written as an encoder of base64 would")
    return decoded


def _read_key_file(path: Path, *, is_secret: bool) -> str:
    """The text of a key file. Raises KeyFileRefused."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(KEY_FILE_SIZE_MAX_BYTES + 1)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise KeyFileRefused(path, reason, "check its path and permissions") from error
    if is_secret and stat.S_IMODE(mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileRefused(
            path, f"has mode {stat.S_IMODE(mode):04o}: others may read it or change it", f"chmod 600 {path}"
        )
    if len(text) > KEY_FILE_SIZE_MAX_BYTES:
        raise KeyFileRefused(path, "is too long for a file of keys", "check its path")
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise KeyFileRefused(path, "is not UTF-8 text", "check its path") from None


def _cannot_write(path: Path, error: OSError) -> KeyFileRefused:
    return KeyFileRefused(
        path, f"cannot be written: {error.strerror or error}", "look at its disk and folder, then try again"
    )


def _format_key(verifier: Verifier, key: bytes) -> str:
    encoded = base64.b64encode(_ED25519 + key).decode()
    return f"{verifier.key}+{encoded}"


def _parse_key(text: str, kind: str) -> tuple[str, bytes, bytes]:
    """Name, id and key of a key's text; whether they belong together is for the caller to check."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    if not is_name(name) or not _KEY_ID.fullmatch(key_id):
        raise KeyMalformed(kind, "it must be a name, 8 lower-case hex digits and base64, a + between each")
    try:
        key = decode_base64(encoded)
    except ValueError:
        # From None: the error quotes the text.
        raise KeyMalformed(kind, "its last part is not base64") from None
    if key[:1] != _ED25519 or len(key) != 1 + KEY_SIZE_BYTES:
        raise KeyMalformed(kind, f"only Ed25519 is read: a byte 1 and then {KEY_SIZE_BYTES} bytes")
    return name, bytes.fromhex(key_id), key[1:]
