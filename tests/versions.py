"""Tests of what only newer versions of other libraries do."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def needs(package: str, least: str, because: str) -> pytest.MarkDecorator:
    """Skips a test where a package is older."""
    return pytest.mark.skipif(Version(version(package)) < Version(least), reason=f"{package} < {least}: {because}")
