"""What a call of a pipeline was asked for: judged, and the same on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from planner.errors import InvalidInputError
from planner.pipelines.sampling import Sampling
from planner.spelling import shown

__all__ = ["Request", "fingerprint", "padding_mask", "require_ids", "require_mask", "token_ids"]

_WHOLE: Final = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One call of :meth:`planner.Pipeline.generate`.

    Args:
        ids: tokens (rows, tokens).
        mask: 1 for tokens, 0 for padding, of their shape.
        most: how many new tokens at most.
        eos: tokens that end a row; none where rows go on.
        pad: what rows that have ended get.
        sampling: how tokens are chosen.
    """

    ids: Tensor
    mask: Tensor
    most: int
    eos: tuple[int, ...]
    pad: int
    sampling: Sampling

    @property
    def fingerprint(self) -> str:
        """A digest of all of it."""
        return fingerprint(self.ids, self.mask, (self.most, self.eos, self.pad, self.sampling))


def fingerprint(ids: Tensor, mask: Tensor, rest: object = None) -> str:
    """A digest of what a call was given."""
    digest = hashlib.sha256(repr((tuple(ids.shape), rest)).encode())
    for tensor in (ids, mask):
        digest.update(tensor.to("cpu", torch.long).contiguous().numpy().tobytes())
    return digest.hexdigest()


def require_ids(ids: Any, vocab_size: int) -> Tensor:
    """Ids of tokens, by rows. Raises InvalidInputError for anything else."""
    if (
        not isinstance(ids, Tensor)
        or ids.dim() != 2
        or ids.dtype not in _WHOLE
        or not ids.numel()
        or ids.is_meta
    ):
        what = f"{ids.dtype} of {tuple(ids.shape)} on {ids.device}" if isinstance(ids, Tensor) else shown(ids)
        raise InvalidInputError(f"ids must be whole numbers in rows (rows, tokens), not {what}")
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        raise InvalidInputError(
            f"ids must be from 0 to {vocab_size - 1}, the model's vocabulary; got {wrong}"
        )
    return ids.long()


def require_mask(mask: Any, ids: Tensor) -> Tensor:
    """A mask for ids, of ones where there is none. Raises InvalidInputError for one of another shape."""
    if mask is None:
        return torch.ones_like(ids)
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        what = tuple(mask.shape) if isinstance(mask, Tensor) else shown(mask)
        raise InvalidInputError(f"attention_mask must have the shape of ids, {tuple(ids.shape)}, not {what}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InvalidInputError("attention_mask must be 1 for tokens and 0 for padding, and has other values")
    return mask.to(ids.device, torch.long)


def padding_mask(ids: Tensor, pads: Sequence[int], ends: Sequence[int]) -> Tensor | None:
    """What ids say themselves of padding; None where they cannot, or have none.

    Source: ``_prepare_attention_mask_for_generation``, transformers 5.23, generation/utils.py.

    Example:
        >>> padding_mask(torch.tensor([[0, 5], [6, 7]]), [0], [1])
        tensor([[0, 1],
                [1, 1]])
    """
    return (ids != pads[0]).long() if pads and pads[0] not in ends else None


def token_ids(given: int | Sequence[int] | None, what: str, words: int) -> tuple[int, ...]:
    """One token, several or none. Raises InvalidInputError for what are no tokens of a vocabulary of so many words."""
    several = () if given is None else (given,) if isinstance(given, int) else given
    if isinstance(several, str) or not isinstance(several, Sequence):
        raise InvalidInputError(f"{what} must be a token's number or several, not {shown(given)}")
    for each in several:
        if type(each) is not int or not 0 <= each < words:
            raise InvalidInputError(
                f"{what} must be a token's number, from 0 to {words - 1}, not {shown(each)}"
            )
    return tuple(several)
