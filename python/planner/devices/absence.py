"""Why no accelerator was found, in words."""

from __future__ import annotations


def no_accelerator() -> str | None:
    """What was looked for and not found; None where there is an accelerator.

    Cost: imports torch if it is there.
    """
    try:
        import torch
    except ModuleNotFoundError:
        return "no accelerator was looked for: they are found by torch, which is not installed; name devices with -d"
    if torch.accelerator.is_available():
        return None
    built_for = {
        "CUDA": torch.version.cuda,
        "ROCm": torch.version.hip,
        "XPU": getattr(torch.version, "xpu", None),
    }
    kinds = [f"{name} {version}" for name, version in built_for.items() if version]
    if not kinds:
        return f"no accelerator was found: torch {torch.__version__} is a build for CPUs"
    return (
        f"no accelerator was found: torch {torch.__version__} is built for {' and '.join(kinds)} and finds no device; "
        "is the driver installed, and the device visible?"
    )
