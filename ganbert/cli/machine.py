"""Commands about the machine."""

from __future__ import annotations


def doctor() -> None:
    """Show what this machine has, and what each part is used for."""
    import ganbert.doctor

    ganbert.doctor.run_doctor()
