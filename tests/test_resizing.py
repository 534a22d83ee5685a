"""The size to which a picture is resized."""

from hypothesis import given, settings
from hypothesis import strategies as st

from training.resizing import resized_size


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), side=st.integers(1, 1000), more=st.integers(0, 999))
def test_the_size_in_evaluation_is_that_of_the_short_side_within_the_limit(height, width, side, more):
    free = resized_size(height, width, side, None)
    assert min(free) == side and abs(max(free) - side * max(height, width) / min(height, width)) <= 0.5 + 1e-6
    limited = resized_size(height, width, side, side + more)
    assert max(limited) <= side + more and min(limited) >= 1
    if max(free) <= side + more:
        assert limited == free
    else:
        assert max(limited) == side + more
        assert min(limited) == 1 or abs(min(limited) - (side + more) * min(height, width) / max(height, width)) <= 0.5
    assert resized_size(width, height, side, side + more) == limited[::-1]


def test_sizes_are_those_of_detection_toolboxes():
    assert resized_size(480, 640, 800, 1333) == (800, 1067)
    assert resized_size(640, 427, 800, 1333) == (1199, 800)
    assert resized_size(100, 1000, 800, 1333) == (133, 1333)
    assert resized_size(100, 1000, 800) == (800, 8000)
    assert resized_size(1, 5000, 32, 64) == (1, 64)
    assert resized_size(480, 640, 512, 2048, factor=0.75) == (384, 512)
