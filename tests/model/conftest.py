import pytest
from tiny_models import ALL_BACKBONES


@pytest.fixture(params=sorted(ALL_BACKBONES))
def family(request) -> str:
    """Every kind of backbone; in other folders a ViT and a ResNet stand for all."""
    return request.param
