"""The signing key: files that are read and refused, signatures, and that the secret stays inside."""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, strategies as st

from pocqueue.errors import KeyFileError, SignatureError
from pocqueue.node.keys import ORDER, SigningKey, key_path, verify_signature
from pocqueue.settings import NodeSettings, Settings

#: Secret 1, whose public key is the curve's base point (SEC 2, section 2.4.1).
ONE = "0" * 63 + "1"
BASE_POINT = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
MESSAGE = b"nonces of a round"


def key_file(folder: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
    password: bytes | None = None,
) -> bytes:
    secrecy: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        secrecy = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, form, secrecy)


@pytest.fixture
def one(tmp_path: Path) -> SigningKey:
    return SigningKey.load(key_file(tmp_path, ONE))


@pytest.mark.parametrize("content", [ONE, f"0x{ONE}", f"0X{ONE}\n", f" {ONE}\r\n"])
def test_hex_file(tmp_path: Path, content: str) -> None:
    """With or without 0x and with white space around it."""
    assert SigningKey.load(key_file(tmp_path, content)).public_hex == BASE_POINT


@pytest.mark.parametrize(
    "form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL]
)
def test_pem_file(tmp_path: Path, form: serialization.PrivateFormat) -> None:
    """PKCS#8 and SEC 1, the latter also behind the parameters that OpenSSL writes before it."""
    content = pem(ec.derive_private_key(1, ec.SECP256K1()), form)
    assert SigningKey.load(key_file(tmp_path, content)).public_hex == BASE_POINT
    if form is serialization.PrivateFormat.TraditionalOpenSSL:
        parameters = b"-----BEGIN EC PARAMETERS-----\nBgUrgQQACg==\n-----END EC PARAMETERS-----\n"
        assert SigningKey.load(key_file(tmp_path, parameters + content)).public_hex == BASE_POINT


def test_symbolic_link(tmp_path: Path) -> None:
    """Secrets of containers are links; the mode that counts is the file's."""
    (tmp_path / "link").symlink_to(key_file(tmp_path, ONE))
    assert SigningKey.load(tmp_path / "link").public_hex == BASE_POINT


def test_saved_key_is_loaded_again(tmp_path: Path) -> None:
    """In a file of mode 0600, whatever the umask."""
    key = SigningKey.generate()
    before = os.umask(0)
    try:
        key.save_pem(tmp_path / "new.pem")
    finally:
        os.umask(before)
    assert (tmp_path / "new.pem").stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(tmp_path / "new.pem") == key != SigningKey.generate()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Neither a file nor what a dangling link points to; a missing folder is named."""
    path = key_file(tmp_path, ONE)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(KeyFileError, match="never overwritten"):
            SigningKey.generate().save_pem(taken)
    assert path.read_text() == ONE
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(KeyFileError, match="No such file or directory"):
        SigningKey.generate().save_pem(tmp_path / "nowhere" / "key.pem")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644])
def test_others_may_not_read_it(tmp_path: Path, mode: int) -> None:
    """The command that mends it is in the sentence."""
    path = key_file(tmp_path, ONE, mode)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
        SigningKey.load(path)


def test_missing_file(tmp_path: Path) -> None:
    """Says how to make one."""
    with pytest.raises(KeyFileError, match="pocqueue node key new"):
        SigningKey.load(tmp_path / "none")
    with pytest.raises(KeyFileError, match="is no file"):
        SigningKey.load(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeyFileError, match="is no file"):
        SigningKey.load(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no key"),
        ("hello", "holds no key"),
        (ONE[:-1], "holds no key"),
        (ONE + "0", "holds no key"),
        (b"\xff\x00" * 100, "holds no key"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no key"),
        ("0" * 64, "is no key of secp256k1"),
        (f"{ORDER:x}", "is no key of secp256k1"),
        ("f" * 64, "is no key of secp256k1"),
        (pem(ec.derive_private_key(1, ec.SECP256R1())), "secp256r1; allowed: secp256k1"),
        (pem(rsa.generate_private_key(65537, 2048)), "another kind; allowed: secp256k1"),
        (pem(ec.derive_private_key(1, ec.SECP256K1()), password=b"x"), "is encrypted"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    """Each with what is wrong; what the file holds is not repeated."""
    with pytest.raises(KeyFileError, match=words) as caught:
        SigningKey.load(key_file(tmp_path, content))
    assert "0000" not in str(caught.value)


def test_largest_number_is_a_key(tmp_path: Path) -> None:
    """Its public key is the base point's mirror image."""
    path = key_file(tmp_path, f"{ORDER - 1:x}")
    assert SigningKey.load(path).public_hex == "03" + BASE_POINT[2:]


def test_signature_is_deterministic(one: SigningKey) -> None:
    """That of RFC 6979 as others compute it for secret 1 (a published test vector of libsecp256k1)."""
    signature = one.sign(
        b"All those moments will be lost in time, like tears in rain. Time to die..."
    )
    assert signature == (
        "8600dbd41e348fe5c9465ab92d23e3db8b98b873beecd930736488696438cb6b"
        "547fe64427496db33bf66019dacbf0039c04199abb0122918601db38a72cfc21"
    )


@given(number=st.integers(1, ORDER - 1), message=st.binary(max_size=200))
def test_signatures_verify_and_are_low(number: int, message: bytes) -> None:
    """For every key and message, and for no other message."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(f"{number:064x}".encode())
        file.flush()
        key = SigningKey.load(Path(file.name))
    signature = key.sign(message)
    assert len(signature) == 128
    assert int(signature[64:], 16) <= ORDER // 2
    verify_signature(key.public_hex, message, signature)
    with pytest.raises(SignatureError, match="is not that of"):
        verify_signature(key.public_hex, message + b"\n", signature)


def test_high_s_is_refused(one: SigningKey) -> None:
    """The mirror image is as good on the curve, and would be a second signature of the same batch."""
    signature = one.sign(MESSAGE)
    high = signature[:64] + f"{ORDER - int(signature[64:], 16):064x}"
    with pytest.raises(SignatureError, match="upper half"):
        verify_signature(one.public_hex, MESSAGE, high)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: "",
        lambda s: s[:-1],
        lambda s: s + "0",
        lambda s: s + "\n",
        lambda s: "0x" + s[2:],
        lambda s: s.upper(),
        lambda s: "0" * 64 + s[64:],
        lambda s: s[:64] + "0" * 64,
        lambda s: f"{ORDER:064x}" + s[64:],
        lambda s: s[:64] + f"{ORDER:064x}",
    ],
)
def test_malformed_signatures(one: SigningKey, change: object) -> None:
    """Other lengths, other spellings, numbers out of range."""
    assert callable(change)
    with pytest.raises(SignatureError):
        verify_signature(one.public_hex, MESSAGE, change(one.sign(MESSAGE)))


@pytest.mark.parametrize(
    "public",
    [
        "",
        BASE_POINT[:-1],
        BASE_POINT + "\n",
        BASE_POINT.upper(),
        "04" + BASE_POINT[2:],
        "00" * 33,
        "02" + "0" * 63 + "5",  # 5 is the x of no point
        "02" + "f" * 64,
    ],
)
def test_malformed_public_keys(one: SigningKey, public: str) -> None:
    """A key in another form, or a point off the curve."""
    with pytest.raises(SignatureError, match="The signer"):
        verify_signature(public, MESSAGE, one.sign(MESSAGE))


def test_the_secret_stays_inside(one: SigningKey) -> None:
    """Neither shown nor pickled nor copied."""
    assert repr(one) == str(one) == f"SigningKey(public_hex='{BASE_POINT}')"
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            way(one)
    with pytest.raises(AttributeError):
        one.public_hex = ""  # type: ignore[misc]


def test_path_of_the_key(tmp_path: Path) -> None:
    """In the state folder, or where the setting says."""
    settings = Settings(state_dir=tmp_path)
    assert key_path(settings, NodeSettings(key=None)) == tmp_path / "node-key.pem"
    assert key_path(settings, NodeSettings(key=Path("/run/key"))) == Path("/run/key")
