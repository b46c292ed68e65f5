"""What the tests of the manifests share."""

import pytest

from .manifests import TARGETS, Document, render


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """Each folder that can be applied."""
    return str(request.param)


@pytest.fixture
def documents(target: str) -> list[Document]:
    """What it renders to."""
    return render(target)
