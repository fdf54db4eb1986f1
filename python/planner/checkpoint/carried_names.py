"""What quantisers store below or beside a weight, in names that no live model has: it is counted with the weight.

Source: keys as saved by bitsandbytes 0.50, torchao 0.18 and optimum-quanto 0.2; ``serialized_names`` and
``update_unexpected_keys`` of transformers 5.23, quantizers/. Scales that are tensors of the live module, too (fp8, GPTQ, AWQ,
compressed-tensors, HQQ, AQLM, EETQ), have live names and need no row here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

# Below the weight: bitsandbytes' four bits (the weight itself is packed), and quanto's two tensors in its place.
_BELOW = re.compile(
    r"(?P<weight>.+)\.(?:(?:nested_)?(?:absmax|quant_map)|quant_state\.[^.]+|_data|_scale|_shift)", re.DOTALL
)
_IN_PLACE = ("._data", "._scale", "._shift")
# Beside it, as attributes of a subclass of tensors that torchao takes apart.
_TAKEN_APART = re.compile(
    r"(?P<module>.+\.)_(?P<weight>[^.]+?)_(?:qdata|scale_and_zero|per_tensor_scale|scale|zero_point|act_pre_scale)",
    re.DOTALL,
)
# Beside it: eight bits of bitsandbytes, which sets both on the weight, and four bits of gpt-oss.
_BESIDE = re.compile(r"(?P<module>.+\.)(?:SCB|weight_format)", re.DOTALL)
_BLOCKS, _SCALES = "_blocks", "_scales"


def carriers(names: Collection[str], *, quantised: bool) -> Mapping[str, str]:
    """Of names that belong to a weight, the weight's.

    Args:
        names: of all tensors in files, or their general forms.
        quantised: whether the configuration says that a quantiser was there; then whatever lies below a tensor is its.

    Example:
        >>> dict(carriers(["fc.weight", "fc.weight.absmax", "fc.bias"], quantised=False))
        {'fc.weight.absmax': 'fc.weight'}

    Cost: O(parts of names).
    """
    there = set(names)
    in_place = _taken_places(there)
    found = {name: carrier for name in names if (carrier := _carrier(name, there, in_place)) is not None}
    if quantised:
        for name in names:
            # As a model may well have both for itself, they mean nothing where no quantiser was.
            stem = name.removesuffix(_BLOCKS).removesuffix(_SCALES)
            if stem != name and {stem + _BLOCKS, stem + _SCALES} <= there:
                found.setdefault(name, stem)
            above = next((name[:dot] for dot in _dots(name) if name[:dot] in there), None)
            if above is not None:
                found.setdefault(name, above)
    return found


def _taken_places(there: set[str]) -> set[str]:
    """Weights in whose places there are quanto's tensors: data and scales, and nothing else, which a module would have."""
    places = {name.removesuffix("._data") for name in there if name.endswith("._data")}
    places = {place for place in places if f"{place}._scale" in there}
    others = (name for name in there if not name.endswith(_IN_PLACE)) if places else ()
    return places.difference(name[:dot] for name in others for dot in _dots(name))


def _carrier(name: str, there: set[str], in_place: set[str]) -> str | None:
    if match := _BELOW.fullmatch(name):
        weight = match["weight"]
        return weight if weight in there or weight in in_place else None
    if match := _TAKEN_APART.fullmatch(name):
        stem = f"{match['module']}_{match['weight']}"
        return f"{match['module']}{match['weight']}" if f"{stem}_qdata" in there else None
    if match := _BESIDE.fullmatch(name):
        weight = f"{match['module']}weight"
        return weight if weight in there else None
    return None


def _dots(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "."]
