"""A proof scheme: what is computed for a nonce, which nonces are kept, how they are written and judged.

One folder a scheme: `poc/distance/` is the first. A round's `proof` is an object of its scheme's class,
which holds the scheme's parameters; everything else asks that object and never looks into a value:

    worker      `sift` keeps some of the computed values
    store       holds values as JSON
    wire, file  `body` writes a batch and `read` reads one; parameters stand flat among the search's own
    node        `refusal` finds claims that cannot be, `judge` those that are not true
    signature   `signed_value` and `signed_parameters`; see `canonical.py`

What a scheme computes on a device is a class of its own, named by `maths`: torch is not imported here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)
from typing_extensions import override

from pocqueue.errors import InvalidRound
from pocqueue.poc.fields import Allowed
from pocqueue.poc.fraud import fraud_test
from pocqueue.poc.nonces import MAX_NONCE
from pocqueue.poc.proofs import Proofs, ReceivedBatch, Verdict, check_length
from pocqueue.poc.search import ANY_BATCH_SIZE, MAX_BATCH_SIZE, Search, SearchBody

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic_core import CoreSchema

#: The scheme of a search that names none; it is left out on every wire and in every file.
DEFAULT = "distance"
#: Class of each scheme by its name, as ``module:name``; a new one is a folder and a line here.
CLASSES = {
    DEFAULT: "pocqueue.poc.distance.scheme:Distance",
    "artifact": "pocqueue.poc.artifact.scheme:Artifact",
}
#: Most nonces of one batch that is read from elsewhere.
MAX_NONCES = 1_000_000

FraudThreshold = Annotated[
    float,
    Field(
        gt=0,
        lt=1,
        description="A proof is fraud if an honest node is less likely than this to have made it.",
    ),
    Allowed("a number above 0 and below 1"),
]


class _Batch(BaseModel):
    """A batch in JSON, but for its values."""

    public_key: str
    block_hash: str
    block_height: int
    nonces: list[int] = Field(max_length=MAX_NONCES)
    node_id: int = 0


class _StrictBatch(_Batch):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ProofScheme(BaseModel, ABC):
    """A round's parameters of its scheme, and the scheme."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    #: The list of values in a batch, beside `nonces`.
    field: ClassVar[str]
    #: Type of a value that is read from JSON.
    value_type: ClassVar[Any]
    #: What a value is called in sentences.
    noun: ClassVar[str]
    #: What a value can be, in words; see `is_possible`.
    possible: ClassVar[str]
    #: What it means that another runtime recomputes a value; completes "…: ".
    other_runtime: ClassVar[str]
    #: Class of its device part, a `SchemeMaths`, as ``module:name``; see `maths.py`.
    maths: ClassVar[str]
    #: Whether a small node signs what it sends.
    is_signed: ClassVar[bool] = True
    #: Largest nonce that is searched.
    max_nonce: ClassVar[int] = MAX_NONCE
    #: Fields of a round that its scheme sets where nobody else does, or until they are found out.
    draft: ClassVar[Mapping[str, Any]] = {}
    #: Whether every nonce is kept whose value is not broken; else some of them are valid, and best.
    keeps_all: ClassVar[bool] = False
    #: Parameters that are signed with a verdict, each a number.
    signed_parameters: ClassVar[tuple[str, ...]] = ("fraud_threshold",)

    fraud_threshold: FraudThreshold = 0.01

    # What is searched, computed and kept

    def stride(self, node_id: int, node_count: int) -> tuple[int, int]:
        """Return whose nonces a node searches, and among how many, if it does not search all of its own."""
        return node_id, node_count

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """What the computation of a value depends on beside the search: part of each `Batch`."""
        return ()

    @abstractmethod
    def is_kept(self, value: Any) -> bool:
        """Say whether a computed value makes its nonce valid."""

    @abstractmethod
    def is_broken(self, value: Any) -> bool:
        """Say whether a value could not be computed: never kept, and counted apart."""

    def sift(self, nonces: Sequence[int], values: Sequence[Any]) -> tuple[Proofs, int]:
        """Return the valid nonces of a batch with their values, and how many values are broken."""
        pairs = zip(nonces, values, strict=True)
        kept = Proofs.of(pair for pair in pairs if self.is_kept(pair[1]))
        return kept, sum(map(self.is_broken, values))

    # How it is judged

    @abstractmethod
    def probability_mismatch(self, *, same_arithmetic: bool = True) -> float:
        """Return the chance of an honest nonce to be invalid on another machine, by float error alone.

        Args:
            same_arithmetic: both run the model in the same dtype and runtime.
        """

    @abstractmethod
    def honest_difference(self, vocab_size: int) -> float:
        """Return what the `difference` of an honest node's value from ours stays within, on any engine.

        It is above that with a probability below that of a mismatch; `pocqueue engine compare` measures it.
        """

    @abstractmethod
    def is_possible(self, value: Any) -> bool:
        """Say whether a value of the right type can be one at all, its nonce valid or not."""

    @abstractmethod
    def refusal(self, value: Any) -> str | None:
        """Say why a value cannot be that of a valid nonce, such as "claims …"; None: it can."""

    @abstractmethod
    def is_mismatch(self, received: Any, computed: Any) -> bool:
        """Say whether a claimed value counts as invalid, as we computed another."""

    @abstractmethod
    def difference(self, received: Any, computed: Any) -> float:
        """Say how far two values of a nonce are apart; NaN if that cannot be said."""

    def judge(self, proofs: Proofs, computed: list[Any]) -> Verdict:
        """Test somebody's proofs for fraud.

        Args:
            proofs: as they were received.
            computed: our value of each of their nonces.

        Raises:
            InvalidRound: there is not one value for each nonce.
        """
        check_length(self.field, proofs.values, proofs.nonces, self.noun)
        check_length("computed values", computed, proofs.nonces, self.noun)
        invalid = [
            nonce
            for (nonce, received), own in zip(proofs, computed, strict=True)
            if self.is_mismatch(received, own)
        ]
        probability, fraud = fraud_test(
            len(invalid), len(proofs), self.fraud_threshold, self.probability_mismatch()
        )
        return Verdict(proofs, computed, invalid, probability, fraud)

    # How it is written

    @classmethod
    def to_json(cls, value: Any) -> Any:
        """Return what JSON can hold of a value, broken ones too."""
        return value

    def parameters(self) -> dict[str, Any]:
        """Return the parameters by name, with the scheme's own unless it is the default one."""
        return self.model_dump() | named(self.name)

    def body(self, search: SearchBody, proofs: Proofs) -> dict[str, Any]:
        """Return a batch of a search as it stands in pages, files and callbacks of rounds."""
        return {
            "public_key": search.public_key,
            "block_hash": search.block_hash,
            "block_height": search.block_height,
            "nonces": proofs.nonces,
            self.field: proofs.values,
            "node_id": search.node_id,
        } | named(self.name)

    def callback_body(self, search: SearchBody, proofs: Proofs) -> dict[str, Any]:
        """Return a batch as a round's receiver gets it, unsigned."""
        return self.body(search, proofs)

    def verdict_body(self, search: SearchBody, verdict: Verdict) -> dict[str, Any]:
        """Return a verdict as it goes over the wire; node and key are those of the proofs."""
        values = [self.to_json(value) for value in verdict.computed]
        return {
            **self.body(search, Proofs(verdict.proofs.nonces, values)),
            f"received_{self.field}": [self.to_json(value) for value in verdict.proofs.values],
            **self.parameters(),
            "n_invalid": verdict.n_invalid,
            "probability_honest": verdict.probability_honest,
            "fraud_detected": verdict.fraud_detected,
        }

    def signed_body(self, search: SearchBody, proofs: Proofs) -> dict[str, Any]:
        """Return a batch as a small node sends it, before it is signed."""
        return self.callback_body(search, proofs)

    @classmethod
    @cache
    def batch_model(cls, *, strict: bool = False) -> type[BaseModel]:
        """Return what a batch in JSON is checked with."""
        fields: dict[str, Any] = {
            cls.field: (list[cls.value_type], Field(max_length=MAX_NONCES))  # type: ignore[name-defined]
        }
        return create_model("Batch", __base__=_StrictBatch if strict else _Batch, **fields)

    @classmethod
    def read(cls, body: BaseModel) -> ReceivedBatch:
        """Return the batch that an object of `batch_model` holds."""
        fields = body.model_dump()
        proofs = Proofs(fields.pop("nonces"), fields.pop(cls.field))
        return ReceivedBatch(**fields, proofs=proofs)

    # How it is signed

    @classmethod
    @abstractmethod
    def signed_value(cls, value: object, name: str, *, in_verdict: bool) -> str:
        """Return a value of a JSON body as it is signed: plain text without comma and newline.

        Args:
            value: as it was read.
            name: of its list, for the error.
            in_verdict: whether the value may be a broken one.

        Raises:
            SignatureError: it is none.
        """

    @classmethod
    def repetitions(cls, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the unsigned fields of a verdict that have to agree with signed ones."""
        return {}

    # For people

    @property
    def kept_noun(self) -> str:
        """What a kept nonce is called in sentences."""
        return self.noun if self.keeps_all else "valid nonce"

    def facts(self) -> list[tuple[str, str]]:
        """Return what is worth showing of the parameters, as (name, value)."""
        return []

    def notes(self) -> list[str]:
        """Return what is worth saying of the parameters to whoever asked for them, a sentence each."""
        return []

    def expected_rate(self, vocab_size: int) -> float:
        """Return the share of nonces that is valid, by theory."""
        return 1.0

    def rank(self, value: Any) -> float:
        """Return a number by which values are sorted, the best first."""
        return 0.0

    @abstractmethod
    def show(self, value: Any, digits: int = 6) -> str:
        """Return a value in one short line."""


def named(name: str) -> dict[str, str]:
    """Return the field that names a scheme on the wire: none for the default one."""
    return {} if name == DEFAULT else {"scheme": name}


def scheme_class(name: object) -> type[ProofScheme]:
    """Return the scheme of a name.

    Raises:
        InvalidRound: there is none.
    """
    if not isinstance(name, str) or name not in CLASSES:
        raise InvalidRound("scheme", name, " or ".join(sorted(CLASSES)))
    found: type[ProofScheme] = resolve_name(CLASSES[name])
    return found


def _name_in(fields: dict[str, Any]) -> object:
    """Take the name of a scheme out of a body: ``proof``, or ``scheme`` as it was called before."""
    given = {key: fields.pop(key, None) for key in ("proof", "scheme")}
    names = {name for name in given.values() if isinstance(name, str)}
    if len(names) > 1:
        allowed = f"the same as scheme, {given['scheme']!r}, or one of the two alone"
        raise InvalidRound("proof", given["proof"], allowed)
    return next((name for name in given.values() if name is not None), DEFAULT)


class WithProof(BaseModel):
    """The part of a search that says how nonces are proven; its parameters stand flat in JSON.

    The scheme's name comes as ``proof`` or ``scheme``; without one it is the default.
    """

    proof: SerializeAsAny[ProofScheme]

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping) or isinstance(fields.get("proof"), ProofScheme):
            return fields
        rest = dict(fields)
        kind = scheme_class(_name_in(rest))
        own = {name: rest.pop(name) for name in kind.model_fields if name in rest}
        # Its errors name the fields as they stand here: flat.
        return rest | {"proof": kind.model_validate(own)}

    @model_serializer(mode="wrap")
    def _flatten(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        proof: dict[str, Any] = fields.pop("proof", {})
        return fields | proof | named(self.proof.name)

    @classmethod
    @override
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the name of the scheme in place of `proof`, and the parameters of all schemes."""
        found = handler.resolve_ref_schema(handler(schema))
        found["properties"]["proof"] = {
            "type": "string",
            "enum": list(CLASSES),
            "default": DEFAULT,
            "description": "How nonces are proven. Parameters of the other proofs are ignored.",
        }
        for name in CLASSES:
            own = scheme_class(name).model_json_schema()
            for field, said in own["properties"].items():
                if field in own.get("required", []):
                    said["description"] = (
                        f"{said.get('description', '')} Needed for {name}.".strip()
                    )
                elif name != DEFAULT:
                    said["description"] = f"Of {name}: {said.get('description', field)}"
                found["properties"].setdefault(field, said)
        found["required"] = [name for name in found.get("required", []) if name != "proof"]
        return found


class ProofSearch(Search, WithProof):
    """A search and how its nonces are proven."""

    @property
    def scheme(self) -> str:
        return self.proof.name

    def notes(self, pass_size: int | None = None) -> list[str]:
        """Return what is taken another way than it was asked for, in a few words each.

        Args:
            pass_size: what a batch_size above the limit becomes; None: it is not known here.
        """
        taken = (
            "the GPUs take the one that does best" if pass_size is None else f"{pass_size} is taken"
        )
        above = f"batch_size {self.batch_size} is above {MAX_BATCH_SIZE}, so {taken}"
        is_wish = MAX_BATCH_SIZE < self.batch_size != ANY_BATCH_SIZE
        return self.proof.notes() + [above] * is_wish

    @property
    @override
    def stride(self) -> tuple[int, int]:
        return self.proof.stride(self.node_id, self.node_count)

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        return self.proof.options

    def body(self, proofs: Proofs) -> dict[str, Any]:
        """Return a batch of this search as it stands in pages and files."""
        return self.proof.body(self, proofs)
