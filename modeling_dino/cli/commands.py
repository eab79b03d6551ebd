# SPDX-License-Identifier: Apache-2.0
"""The commands of `dino`: each takes its options as one dataclass, and imports what it needs when it is called.

To add a command, write its function here, and enter it in `COMMANDS` where the help should list it.
"""

from conversion_scripts.options import ConvertOptions

from ..benchmark.options import BenchOptions
from ..demo.options import DemoOptions
from ..evaluation.options import KnnOptions, LinearOptions, RetrieveOptions, SegmentOptions
from ..extraction.options import ExtractOptions
from ..hub.options import InfoOptions, PushOptions
from ..pictures.options import AttentionOptions, PcaOptions
from ..report.options import ReportOptions
from ..training.options import FinetuneOptions, PretrainOptions


def info(options: InfoOptions):
    """Shows the sizes of a model, or of all presets: parameters, features, memory of weights, FLOPs of an image."""
    from ..hub.info import show_sizes

    return show_sizes(options)


def convert(options: ConvertOptions):
    """Converts any DINO checkpoint into any format; says what it recognised and what it left out."""
    from conversion_scripts.convert import convert

    return convert(options)


def extract(options: ExtractOptions):
    """Computes features of images, as Parquet shards and a manifest; run again, it goes on where it stopped."""
    from ..extraction.extract import extract_features

    return extract_features(options)


def attention(options: AttentionOptions):
    """Draws what a ViT's CLS token attends to: each head, and all heads over the image; as pictures or as videos."""
    from ..pictures.attention import draw_attention

    return draw_attention(options)


def pca(options: PcaOptions):
    """Paints a ViT's patch tokens in the colors of their first three principal components, which all images share."""
    from ..pictures.components import paint_components

    return paint_components(options)


def segment(options: SegmentOptions):
    """Carries the mask of a video's first frame through it by the similarity of patches, as the original on DAVIS."""
    from ..evaluation.segmentation import segment_video

    return segment_video(options)


def knn(options: KnnOptions):
    """Classifies images by the votes of their nearest neighbours, and records the accuracy."""
    from ..evaluation.knn_classification import knn

    return knn(options)


def linear(options: LinearOptions):
    """Trains linear classifiers of a model's features, tests the best, and saves the model with it."""
    from ..evaluation.linear import linear

    return linear(options)


def finetune(options: FinetuneOptions):
    """Trains a classifier and its backbone, and tests it; run again, it goes on where it stopped."""
    from ..training.finetune import finetune

    return finetune(options)


def retrieve(options: RetrieveOptions):
    """Finds the images most like each query; gives mean average precision where labels or a ground truth allow it."""
    from ..evaluation.retrieval import retrieve

    return retrieve(options)


def report(options: ReportOptions):
    """Writes one HTML page: a map of the images, neighbours, near-duplicates, outliers, and what k-NN predicts."""
    from ..report.page import write_report

    return write_report(options)


def pretrain(options: PretrainOptions):
    """Pretrains a model by a recipe; run again, it goes on where it stopped."""
    from ..training.pretrain import pretrain

    return pretrain(options)


def push(options: PushOptions):
    """Pushes a model to the hub with its image transform and a model card, and prints its address."""
    from ..hub.pushing import push_saved_model

    return push_saved_model(options)


def bench(options: BenchOptions):
    """Measures how fast models are on this machine, beside the same models in other libraries."""
    from ..benchmark.run import run_benchmarks

    return run_benchmarks(options)


def demo(options: DemoOptions):
    """Pretrains on scikit-image's photographs, extracts features, evaluates them, and draws pictures, in minutes."""
    from ..demo.run import run_demo

    return run_demo(options)


COMMANDS = [
    info,
    convert,
    extract,
    attention,
    pca,
    segment,
    knn,
    linear,
    finetune,
    retrieve,
    report,
    pretrain,
    push,
    bench,
    demo,
]
