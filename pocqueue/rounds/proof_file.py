"""Proofs files: the JSON file that a round's proofs are written to, and the checks on reading one.

Content, UTF-8, one top-level key a line::

    {"format": "pocqueue-proofs/1",
     "round":  {"id", "state", "reason", "created", "ended",    times: ISO 8601 in UTC; ended may be null
                and the fields of RoundSpec but those in LEFT_OUT},
     "model":  {"name", "fingerprint", and of EngineInfo what is known, else null},
     "result": {"checked", "valid", "valid_rate", "expected_valid_rate", "nonfinite", "late_batches",
                "abandoned", "elapsed_s", "rate"},
     "proofs": a batch as its scheme writes it (`ProofScheme.body`), nonces ascending,
     "sha256": 64 hexadecimal digits}

``sha256`` is the SHA-256 of all else in canonical form: the object without that key as JSON with keys
sorted by code point at every level, no spaces, no escapes but those that JSON demands, UTF-8, integers
in full, other numbers in the shortest form that reads back as the same double (Python's ``repr``), NaN
and infinity forbidden. It finds damage; it does not sign. What is claimed is checked by recomputing it,
see ``validation.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)

from pocqueue import strict_json
from pocqueue.engine.base import EngineInfo
from pocqueue.errors import InvalidRound, ProofFileError
from pocqueue.files import replace_file
from pocqueue.poc.proofs import Proofs, ReceivedBatch, check_length
from pocqueue.poc.scheme import DEFAULT, named, scheme_class
from pocqueue.rounds.records import ProofEntry, RoundStatus
from pocqueue.rounds.spec import RoundSpec, RoundState

FORMAT = "pocqueue-proofs/1"
#: Larger files are not read: about 30 million proofs.
MAX_BYTES = 1 << 30
#: Fields of RoundSpec that are no part of the file's "round": the model has a place of its own, the
#: share only matters while GPUs are shared out, a callback URL may hold somebody's secret, and who asked
#: for it is nobody else's business.
LEFT_OUT = frozenset(
    {"model", "model_fingerprint", "share", "callback_url", "customer", "asked_by"}
)
#: Those that are in the file only where a round has them.
_OPTIONAL = frozenset({"given_nonces"})

_WRITE_AGAIN = (
    "write it again with `pocqueue round proofs ID --output FILE`, or ask who made it for another"
)


class _Part(BaseModel):
    """One object of the file. Unknown keys are ignored: the digest covers them all the same."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


Part = TypeVar("Part", bound=BaseModel)
#: In the file always in UTC and with milliseconds.
Time = Annotated[
    AwareDatetime,
    AfterValidator(lambda time: time.astimezone(UTC)),
    PlainSerializer(lambda time: time.isoformat(timespec="milliseconds")),
]


class ModelPart(_Part):
    """The model that the proofs were made with; null if the pool no longer knew it."""

    name: str = Field(min_length=1)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    engine: str | None = None
    device_name: str | None = None
    #: Of weights and activations. Not part of the fingerprint, and distances depend on it.
    dtype: str | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    max_seq_len: int | None = None


class ResultPart(_Part):
    """How the round went."""

    checked: int = Field(ge=0)
    valid: int = Field(ge=0)  #: exactly the number of proofs in the file
    valid_rate: float = Field(ge=0, le=1)
    #: By calibration if the round was calibrated, else of random directions; null: not known.
    expected_valid_rate: float | None = Field(default=None, ge=0, le=1)
    nonfinite: int = Field(default=0, ge=0)
    late_batches: int = Field(default=0, ge=0)
    abandoned: int = Field(default=0, ge=0)
    elapsed_s: float = Field(ge=0)
    rate: float = Field(ge=0)  #: nonces per second


class RoundPart(_Part):
    """What "round" holds beside the specification."""

    # Not strict: enumerations and times come as JSON strings.
    model_config = ConfigDict(strict=False)

    id: str = Field(min_length=1)
    state: RoundState
    reason: str = ""
    created: Time
    ended: Time | None = None  #: None: the round was still active when the file was made


class _DamageError(ValueError):
    """What is wrong with a file's content and what to do; completes "Proofs file X …"."""

    def __init__(self, what: str, advice: str = _WRITE_AGAIN) -> None:
        super().__init__(f"{what}: {advice}.")


@dataclass(frozen=True)
class ProofFile:
    """The content of a proofs file; one that was read is checked (see `parse`)."""

    round: RoundPart
    spec: RoundSpec  #: without share and callback URL, which the file does not hold
    model: ModelPart
    result: ResultPart
    proofs: Proofs

    @classmethod
    def from_round(
        cls, status: RoundStatus, info: EngineInfo | None, entries: Iterable[ProofEntry]
    ) -> Self:
        """Build the file of a round.

        Args:
            status: the round as it stands.
            info: the model as a worker tells it; None if no worker serves it any more.
            entries: all proofs of the round, in any order.
        """
        proofs = Proofs.of(sorted(Proofs.joined(e.proofs for e in entries), key=itemgetter(0)))
        spec = status.spec
        # Of an active round the entries may be newer than the status.
        checked = max(status.checked, len(proofs))
        expected = spec.expected_valid_rate
        if expected is None and info is not None:
            expected = spec.proof.expected_rate(info.vocab_size)
        known = {} if info is None else info.to_dict()
        if spec.model_dtype is not None:
            known["dtype"] = spec.model_dtype
        return cls(
            round=RoundPart(
                id=status.round_id,
                state=status.state,
                reason=status.reason,
                created=_utc(status.created_ms),
                ended=_utc(status.ended_ms) if status.ended_ms else None,
            ),
            spec=spec.model_copy(update={"share": 1.0, "callback_url": None, "customer": None}),
            model=ModelPart(**known | {"name": spec.model, "fingerprint": spec.model_fingerprint}),
            result=ResultPart(
                **status.to_dict()
                | {
                    "checked": checked,
                    "valid": len(proofs),
                    "valid_rate": len(proofs) / checked if checked else 0.0,
                    "expected_valid_rate": expected,
                }
            ),
            proofs=proofs,
        )

    def to_bytes(self) -> bytes:
        """Return the file's bytes, its digest among them."""
        content = {
            "format": FORMAT,
            "round": self.round.model_dump(mode="json")
            | self.spec.model_dump(mode="json", exclude=set(LEFT_OUT)),
            "model": self.model.model_dump(),
            "result": self.result.model_dump(),
            "proofs": self.spec.body(self.proofs),
        }
        lines = [
            f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            for key, value in (content | {"sha256": digest(content)}).items()
        ]
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    @classmethod
    def parse(cls, data: bytes, name: str) -> Self:
        """Read the bytes of a proofs file and check all that can be without the model.

        Args:
            data: the whole file.
            name: what messages call it, such as its path.

        Raises:
            ProofFileError: it is cut, no JSON, of another format, edited, or proofs that its round
                cannot have: of another block, node or key, repeated, without a finite distance.
        """
        try:
            return cls._from_dict(_load(data))
        except _DamageError as exc:
            raise ProofFileError(f"Proofs file {name} {exc}") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file.

        Raises:
            ProofFileError: it cannot be read, is larger than MAX_BYTES, or as `parse` says.
        """
        try:
            # Before opening: a pipe or a device would wait for ever or never end.
            if path.exists() and not path.is_file():
                raise ProofFileError(f"Proofs file {path} is no file: give the path of one.")
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as exc:
            raise ProofFileError(
                f"Proofs file {path} cannot be read ({exc.strerror}): check path, owner and mode, or write "
                "one with `pocqueue round proofs ID --output FILE`."
            ) from exc
        if len(data) > MAX_BYTES:
            raise ProofFileError(
                f"Proofs file {path} is larger than {MAX_BYTES >> 30} GiB, the most that is read: "
                "it is no proofs file of one round."
            )
        return cls.parse(data, str(path))

    def write(self, path: Path) -> None:
        """Write the file, mode 0644, all at once: readers see the old one or the new one.

        Raises:
            ProofFileError: its folder does not exist, or it cannot be written there.
        """
        # A link stays one; what it points to is replaced.
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise ProofFileError(f"Proofs cannot be written to {path}: it is no file; name one.")
        try:
            replace_file(target, self.to_bytes(), mode=0o644)
        except OSError as exc:
            raise ProofFileError(
                f"Proofs cannot be written to {path} ({exc.strerror}): make its folder, or room in it, or "
                "name another one."
            ) from exc

    @classmethod
    def _from_dict(cls, content: Any) -> Self:
        found = content.get("format") if isinstance(content, dict) else None
        if not isinstance(found, str) or not found.startswith("pocqueue-proofs/"):
            raise _DamageError("is no proofs file", "give a file that `pocqueue round` wrote")
        if found != FORMAT:
            raise _DamageError(
                f"has format {found[:40]!r}, but this version reads {FORMAT!r}",
                "use the version of pocqueue that wrote it",
            )
        _check_digest(content)
        part = _read_part(RoundPart, content, "round")
        model = _read_part(ModelPart, content, "model")
        result = _read_part(ResultPart, content, "result")
        spec = _read_spec(content["round"], model)
        batch = spec.proof.read(_read_part(spec.proof.batch_model(strict=True), content, "proofs"))
        _check_proofs(batch, spec, result)
        return cls(part, spec, model, result, batch.proofs)


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a file's content without its ``sha256``, 64 hexadecimal digits.

    Raises:
        ValueError: it holds a number that is not finite, or text that is no Unicode.
    """
    rest = {key: value for key, value in content.items() if key != "sha256"}
    canonical = json.dumps(
        rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _load(data: bytes) -> Any:
    try:
        return strict_json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise _DamageError("is not UTF-8 text") from None
    except ValueError as exc:
        raise _DamageError(f"is cut or no JSON ({exc})") from None


def _check_digest(content: Mapping[str, Any]) -> None:
    try:
        right = digest(content)
    except UnicodeEncodeError:
        raise _DamageError("holds text that is no Unicode") from None
    except ValueError:
        raise _DamageError("holds a number that is not finite") from None
    if content.get("sha256") != right:
        raise _DamageError("was edited or damaged after it was written (its sha256 does not fit)")


def _read_part(part: type[Part], content: Mapping[str, Any], key: str) -> Part:
    try:
        return part.model_validate(content.get(key))
    except ValidationError as exc:
        problem = exc.errors()[0]
        place = ".".join(str(step) for step in (key, *problem["loc"]))
        raise _DamageError(f"is wrong at {place} ({problem['msg']})") from None


def _read_spec(fields: Mapping[str, Any], model: ModelPart) -> RoundSpec:
    """Rebuild a round's specification from the file's "round" and "model"."""
    try:
        proof = scheme_class(fields.get("scheme", DEFAULT))
        known = {*RoundSpec.model_fields, *proof.model_fields} - LEFT_OUT - {"proof"}
        # Even of those with defaults: each of them is written.
        if missing := sorted(known - _OPTIONAL - set(fields)):
            raise _DamageError(f"has no round.{missing[0]}")
        return RoundSpec.build(
            **{key: fields[key] for key in known & fields.keys()},
            **named(proof.name),
            model=model.name,
            model_fingerprint=model.fingerprint,
        )
    except InvalidRound as exc:
        raise _DamageError(f"is of a round that cannot be ({str(exc).rstrip('.')})") from None


def _check_proofs(batch: ReceivedBatch, spec: RoundSpec, result: ResultPart) -> None:
    """Refuse proofs that this round cannot have."""
    for field in ("block_hash", "block_height", "public_key", "node_id"):
        has, wants = getattr(batch, field), getattr(spec, field)
        if has != wants:
            raise _DamageError(f"has proofs of {field} {has!r} in a round of {field} {wants!r}")
    proofs, proof = batch.proofs, spec.proof
    try:
        check_length(f"proofs.{proof.field}", proofs.values, proofs.nonces, proof.noun)
        seen: set[int] = set()
        for nonce, value in proofs:
            index = spec.index_of(nonce)
            if spec.max_nonces is not None and index >= spec.max_nonces:
                raise InvalidRound("nonce index", index, f"below max_nonces, {spec.max_nonces}")
            if nonce in seen:
                raise InvalidRound("nonce", nonce, "each nonce once; this one is repeated")
            seen.add(nonce)
            if not proof.is_possible(value):
                name = f"the {proof.noun} of nonce {nonce}"
                raise InvalidRound(name, value, proof.possible)
    except InvalidRound as exc:
        raise _DamageError(f"has proofs that cannot be ({str(exc).rstrip('.')})") from None
    if not len(proofs) == result.valid <= result.checked:
        raise _DamageError(
            f"has {len(proofs)} proofs but says {result.valid} of {result.checked} nonces are valid"
        )


def _utc(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, tz=UTC)
