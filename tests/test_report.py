"""What reports are made of."""

import math

from ckpt_tools.report import HEAT_EDGES, shade, sparkline


def test_sparkline_has_eight_heights_and_a_space_for_nothing():
    assert sparkline(range(9)) == " ▁▂▃▄▅▆▇█"
    assert sparkline((0, 1, 4, 8)) == " ▁▄█"
    assert sparkline([1_000_000, 1, 0]) == "█▁ "
    assert sparkline([]) == sparkline([0, 0]).strip() == ""


def test_a_shade_is_a_factor_of_ten():
    assert [shade(edge) for edge in HEAT_EDGES] == [1, 2, 3, 4, 5, 6, 7]
    assert [shade(math.nextafter(edge, 0)) for edge in HEAT_EDGES] == [0, 1, 2, 3, 4, 5, 6]
    assert (shade(5e-324), shade(1e300)) == (0, 7)
