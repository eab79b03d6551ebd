from transformers.models.auto import modeling_auto
from transformers_common import PACKAGE

import modeling_dino  # noqa: F401 (registers with the Auto classes)


# The common tests look up by these names what kind of model a class is.
modeling_auto.MODEL_MAPPING_NAMES["dino"] = "DinoModel"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["dino"] = "DinoForImageClassification"
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["dino"] = "DinoBackbone"

collect_ignore = [] if PACKAGE.is_dir() else ["test_transformers_common.py"]


def pytest_report_header():
    if not PACKAGE.is_dir():
        return "transformers' common tests are left out: `make test` fetches them"
