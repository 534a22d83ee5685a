"""The Triton kernels against the references at shapes that hypothesis draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .kernel_cases import OPERATORS, check, draw

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []


@pytest.mark.parametrize("operator", OPERATORS)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_equals_the_reference(operator, seed):
    check(draw(operator, seed), torch.float32, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_equals_the_reference_often(operator, seed):
    check(draw(operator, seed), torch.float32, 1e-5)
