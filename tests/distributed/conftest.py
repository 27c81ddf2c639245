"""A comparison in `launched` that fails shows the values, as it does in a test."""

import pytest


pytest.register_assert_rewrite("launched")
