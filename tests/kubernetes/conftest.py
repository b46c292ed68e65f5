"""What the tests of the manifests share."""

import pytest

from .manifests import TARGETS, Document, applied


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """Each folder that can be applied."""
    return str(request.param)


@pytest.fixture
def documents(target: str) -> list[Document]:
    """What the cluster holds when it is applied."""
    return applied(target)
