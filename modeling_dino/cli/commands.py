# SPDX-License-Identifier: Apache-2.0
"""The commands of `dino`: each is a function of one dataclass of options, imported when it is called.

To add a command, write its function with [`takes_options`], and enter it in `COMMANDS` where the help should list it.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from conversion_scripts.options import ConvertOptions

from ..benchmark.options import BenchOptions
from ..demo.options import DemoOptions
from ..evaluation.options import KnnOptions, LinearOptions, RetrieveOptions, SegmentOptions
from ..export.options import ExportOptions
from ..extraction.options import ExtractOptions
from ..hub.options import InfoOptions, PushOptions
from ..pictures.options import AttentionOptions, MatchOptions, PcaOptions
from ..report.options import ReportOptions
from ..training.options import FinetuneOptions, PretrainOptions


@dataclass(frozen=True)
class Command:
    """
    A command of `dino`.

    Args:
        name: the name on the command line.
        options_class: the dataclass of its options.
        function: the dotted name of its function.
    """

    name: str
    options_class: type
    function: str

    def load(self) -> Any:
        """Imports the function."""
        module, _, name = self.function.rpartition(".")
        return getattr(import_module(module), name)


COMMANDS = [
    Command("info", InfoOptions, "modeling_dino.hub.info.show_info"),
    Command("convert", ConvertOptions, "conversion_scripts.convert.convert_checkpoint"),
    Command("export", ExportOptions, "modeling_dino.export.export.export_model"),
    Command("extract", ExtractOptions, "modeling_dino.extraction.extract.extract_features"),
    Command("attention", AttentionOptions, "modeling_dino.pictures.attention.draw_attention"),
    Command("pca", PcaOptions, "modeling_dino.pictures.components.draw_pca"),
    Command("match", MatchOptions, "modeling_dino.pictures.matches.match_images"),
    Command("segment", SegmentOptions, "modeling_dino.evaluation.segmentation.segment_video"),
    Command("knn", KnnOptions, "modeling_dino.evaluation.knn_classification.evaluate_knn"),
    Command("linear", LinearOptions, "modeling_dino.evaluation.linear.evaluate_linear"),
    Command("finetune", FinetuneOptions, "modeling_dino.training.finetune.finetune"),
    Command("retrieve", RetrieveOptions, "modeling_dino.evaluation.retrieval.retrieve"),
    Command("report", ReportOptions, "modeling_dino.report.page.write_report"),
    Command("pretrain", PretrainOptions, "modeling_dino.training.pretrain.pretrain"),
    Command("push", PushOptions, "modeling_dino.hub.pushing.push_model"),
    Command("bench", BenchOptions, "modeling_dino.benchmark.run.run_bench"),
    Command("demo", DemoOptions, "modeling_dino.demo.run.run_demo"),
]
