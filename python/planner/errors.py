"""Every error that planner raises on purpose. Fields first, words second; imports nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

__all__ = [
    "CheckpointError",
    "InfeasibleError",
    "IntegrationError",
    "InvalidByteSizeError",
    "InvalidConfigError",
    "InvalidConstraintError",
    "InvalidDevicesError",
    "InvalidInputError",
    "InvalidTreeError",
    "OffloadError",
    "PipelineError",
    "PlanMismatchError",
    "PlannerError",
    "RecordingError",
    "UnknownMemoryError",
]


class PlannerError(Exception):
    """Base of every error raised by planner on purpose.

    Guarantee: picklable, and equal fields after a round trip; nothing was changed when it is raised.
    """

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields: Mapping[str, Any] = dict(fields)
        for name, value in fields.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException pickles positional arguments only; the fields must survive a process pool too.
        return (_rebuild, (type(self), self.message, dict(self.fields)))


def _rebuild(cls: type[PlannerError], message: str, fields: dict[str, Any]) -> PlannerError:
    return cls(message, **fields)


class InvalidInputError(PlannerError, ValueError):
    """What was asked cannot be understood; nothing was planned or changed."""


class InvalidTreeError(InvalidInputError):
    """The module tree cannot be planned: a cycle, an uninitialised parameter, too many names.

    Fields: ``name`` (str): qualified name of the offending module or tensor.
    """

    name: str


class InvalidDevicesError(InvalidInputError):
    """A device or its budget makes no sense: unknown key or card, two spellings, negative, NaN, infinite.

    Fields: ``device``: the key as given; ``suggestions`` (sequence of str): of a card, the nearest known names.
    """

    device: object
    suggestions: Sequence[str] = ()


class InvalidConstraintError(InvalidInputError):
    """Names that match nothing, or constraints that contradict each other.

    Fields: ``names`` (sequence of str), ``suggestions`` (sequence of str, nearest known names).
    """

    names: Sequence[str]
    suggestions: Sequence[str]


class InvalidByteSizeError(InvalidInputError):
    """A size that is neither a number of bytes nor a number with a unit. Fields: ``text``."""

    text: object


class InvalidConfigError(InvalidInputError):
    """One or more configuration problems, all at once. Fields: ``problems`` (sequence)."""

    problems: Sequence[Any]


class InfeasibleError(PlannerError, ValueError):
    """The model does not fit the budgets that were named. A ValueError, too, as transformers and its quantisers raise there.

    Fields: ``block`` (str): first block without a place; ``device``: the last device, where accelerate's strategies refused it, None
    of ``auto``, which refuses it everywhere; ``shortfall_bytes`` (int): what ``device`` lacks, and of ``auto`` the least of
    ``more_bytes``, None where no single device with more bytes would be enough; ``best_partial``: what had been placed;
    ``more_bytes``: by device, what alone would be enough, None of accelerate's strategies, which do not look; ``is_proven``:
    there is no plan, otherwise none was found, None of accelerate's strategies, which prove nothing; ``smaller_formats``: of
    ``plan()``, by quantiser's format, about how many bytes the whole model would have in it, only clearly smaller ones.
    """

    block: str = ""
    device: int | str | None = None
    shortfall_bytes: int | None = None
    best_partial: Mapping[str, int | str] = MappingProxyType({})
    more_bytes: Mapping[int | str, int] | None = None
    is_proven: bool | None = None
    smaller_formats: Mapping[str, int] = MappingProxyType({})


class UnknownMemoryError(PlannerError, ValueError):
    """What a model takes while it runs can be neither computed nor recorded; nothing was guessed.

    Fields: ``model_type`` (str): of the part that is not known, "" where a configuration names none; ``unknown`` (str): a layer's
    type, a value that the configuration leaves out, or an operator; ``block`` (str): where, "" of a configuration.
    """

    model_type: str = ""
    unknown: str = ""
    block: str = ""


class CheckpointError(PlannerError, ValueError):
    """A checkpoint file is missing, malformed or hostile, or does not fit the model that it is to be loaded into.

    Fields: ``file``, ``reason``, ``findings`` (sequence of str): of a load, everything that does not fit.
    """

    file: str
    reason: str
    findings: Sequence[str] = ()


class OffloadError(PlannerError, RuntimeError):
    """A dispatched model cannot do what was asked: an offloaded weight cannot be stored, read or fetched, or a block's arguments
    cannot be given back.

    Fields: ``name`` (str): the weight; None where it is about an argument.
    """

    name: str | None = None


class PlanMismatchError(PlannerError):
    """A device map does not fit the model it is to be applied to. Fields: ``findings`` (sequence)."""

    findings: Sequence[Any]


class PipelineError(PlannerError, RuntimeError):
    """A pipeline cannot begin or go on: processes and stages do not agree, or one of them failed, is gone or does not answer.

    Fields: ``rank`` (int): which process it is about, None where that is not known; ``stage`` (int) and ``layers`` (range): what it
    runs; ``step`` (int): which forward was under way, None before the first.
    """

    rank: int | None = None
    stage: int | None = None
    layers: range | None = None
    step: int | None = None


class IntegrationError(PlannerError):
    """A library has not what ours would be put in the place of, or it is called otherwise; nothing was replaced.

    Fields: ``library`` (str), ``version``: the installed one, None where there is none, ``problems`` (sequence of str): each place
    that does not fit, with the signature that was found there.
    """

    library: str
    version: str | None
    problems: Sequence[str]


class RecordingError(PlannerError):
    """A model's forward cannot be recorded, so what it needs while it runs is not known exactly.

    Fields: ``block`` (str): where, "" between blocks; ``operator`` (str): the last one that was called before.
    """

    block: str
    operator: str
