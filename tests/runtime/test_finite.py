import pytest
import torch

from modeling_dino.runtime.finite import check_finite


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 2)])
def test_the_first_image_is_named(shape):
    values = torch.zeros(shape)
    check_finite(values, "the feature of", "abc")
    check_finite(values[:0], "the feature of", "")
    values[1], values[2] = torch.inf, torch.nan
    with pytest.raises(ValueError, match=r"^the feature of b is not finite: .* damaged$"):
        check_finite(values, "the feature of", "abc")
    with pytest.raises(ValueError, match=r"b is not finite: .* or float16 overflows: use float32 or bfloat16$"):
        check_finite(values, "the feature of", "abc", "float16")
