"""transformers' own common tests, on one ViT and one ResNet configuration for each class."""

import unittest

import torch

import transformers_common
from modeling_dino import DinoBackbone, DinoConfig, DinoForImageClassification, DinoModel


modeling_common, backbone_common, configuration_common = transformers_common.load()
ModelTesterMixin = modeling_common.ModelTesterMixin
BackboneTesterMixin = backbone_common.BackboneTesterMixin
ConfigTester = configuration_common.ConfigTester

TINY_HEAD = {"projection_dim": 16, "head_hidden_dim": 24, "head_bottleneck_dim": 8}
TINY_VIT = {"backbone": "vit_tiny", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY_RESNET = {"backbone": "resnet18", "hidden_size": 32, "depths": [1, 1, 1, 1]}


class DinoModelTester:
    """Makes configurations and inputs; the mixins read its attributes."""

    batch_size = 3
    image_size = 16
    is_training = True

    def __init__(self, parent, backbone: dict, **config):
        self.parent = parent
        self.config = {**backbone, **TINY_HEAD, "image_size": self.image_size, "patch_size": 4, "num_labels": 3, **config}
        built = self.get_config()
        self.hidden_size = built.hidden_size
        self.num_hidden_layers = built.num_hidden_layers
        self.num_attention_heads = built.num_attention_heads
        self.seq_length = 1 + (self.image_size // built.patch_size) ** 2

    def get_config(self):
        return DinoConfig(**self.config)

    def prepare_config_and_inputs(self):
        pixel_values = modeling_common.floats_tensor([self.batch_size, 3, self.image_size, self.image_size])
        labels = modeling_common.ids_tensor([self.batch_size], 3)
        return self.get_config(), pixel_values, labels

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}


class ViTModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (DinoModel, DinoForImageClassification)
    pipeline_model_mapping = {"image-feature-extraction": DinoModel, "image-classification": DinoForImageClassification}
    test_resize_embeddings = False
    backbone = TINY_VIT

    def setUp(self):
        self.model_tester = DinoModelTester(self, self.backbone)
        self.config_tester = ConfigTester(self, config_class=DinoConfig, has_text_modality=False, **self.backbone)

    def test_config(self):
        self.config_tester.run_common_tests()


class ResNetModelTest(ViTModelTest):
    has_attentions = False
    backbone = TINY_RESNET


class ViTBackboneTest(BackboneTesterMixin, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (DinoBackbone,)
    config_class = DinoConfig
    test_resize_embeddings = False
    backbone = TINY_VIT

    def setUp(self):
        self.model_tester = DinoModelTester(self, self.backbone, out_features=["stage1", "stage3"])


class ResNetBackboneTest(ViTBackboneTest):
    has_attentions = False
    backbone = TINY_RESNET
