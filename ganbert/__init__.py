"""GANBERT: synthesise PET from T1-weighted MRI (Shin et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ganbert.synthesis import load_generator

__version__ = "0.1.0"
__all__ = ["__version__", "load_generator"]


def __getattr__(name: str) -> Any:
    # Not at the top: `import ganbert` and `ganbert --help` would wait for torch.
    if name == "load_generator":
        from ganbert.synthesis import load_generator

        return load_generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
