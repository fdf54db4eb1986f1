from typing import NamedTuple


class I(NamedTuple):
    values: dict
    findings: tuple


def initial_values(model, names):
    return I({}, tuple(f"no values for {n}" for n in names))
