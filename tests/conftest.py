from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import modeling_dino  # noqa: F401 (registers with the Auto classes)

from transformers_common import PACKAGE


# The common tests look the base model's class up by the name of its type.
MODEL_MAPPING_NAMES["dino"] = "DinoModel"

collect_ignore = [] if PACKAGE.is_dir() else ["test_transformers_common.py"]


def pytest_report_header():
    if not PACKAGE.is_dir():
        return "transformers' common tests are left out: `make test` fetches them"
