"""transformers' own common tests, on one ViT and one ResNet configuration for each class."""

import unittest
import unittest.mock

import torch
import transformers_common

from modeling_dino import DinoBackbone, DinoConfig, DinoForImageClassification, DinoModel


modeling_common, backbone_common, configuration_common = transformers_common.load()
ModelTesterMixin = modeling_common.ModelTesterMixin
BackboneTesterMixin = backbone_common.BackboneTesterMixin
ConfigTester = configuration_common.ConfigTester

TINY_HEAD = {"projection_dim": 16, "head_hidden_dim": 24, "head_bottleneck_dim": 8}
TINY_VIT = {"backbone": "vit_tiny", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_RESNET = {"backbone": "resnet18", "hidden_size": 32, "depths": [1, 1]}


class DinoModelTester:
    """Makes configurations and inputs; the mixins read its attributes."""

    batch_size = 3
    image_size = 16
    is_training = True

    def __init__(self, parent, backbone: dict, **config):
        self.parent = parent
        self.config = {
            **backbone,
            **TINY_HEAD,
            "image_size": self.image_size,
            "patch_size": 4,
            "num_labels": 3,
            **config,
        }
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
    all_model_classes = (DinoModel, DinoForImageClassification, DinoBackbone)
    test_resize_embeddings = False  # images have no vocabulary
    backbone = TINY_VIT

    def setUp(self):
        self.model_tester = DinoModelTester(self, self.backbone, out_features=["stage1", "stage2"])
        self.config_tester = ConfigTester(self, config_class=DinoConfig, has_text_modality=False, **self.backbone)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self):
        """Overridden: the common test wants an `nn.Embedding`; the first layer of an image model is a convolution."""
        for model_class in self.all_model_classes:
            self.assertIsInstance(model_class(self.model_tester.get_config()).get_input_embeddings(), torch.nn.Conv2d)


class ResNetModelTest(ViTModelTest):
    has_attentions = False
    backbone = TINY_RESNET

    def test_capture_outputs_decorator(self):
        """Narrowed: asks for hidden states alone, since a ResNet refuses to be asked for attention."""
        with unittest.mock.patch.dict(DinoModel._can_record_outputs):
            del DinoModel._can_record_outputs["attentions"]
            super().test_capture_outputs_decorator()

    def test_hidden_states_output(self):
        """Overridden: the common test wants tokens (T, D); a ResNet's hidden states are maps (C, h, w)."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).eval()
            with torch.no_grad():
                hidden_states = model(**inputs, output_hidden_states=True).hidden_states
            shapes = [tuple(hidden_state.shape[1:]) for hidden_state in hidden_states]
            self.assertEqual(shapes, [(16, 16, 16), (16, 16, 16), (32, 8, 8)])


class ViTBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (DinoBackbone,)
    config_class = DinoConfig
    backbone = TINY_VIT

    def setUp(self):
        self.model_tester = DinoModelTester(self, self.backbone, out_features=["stage1", "stage2"])


class ResNetBackboneTest(ViTBackboneTest):
    has_attentions = False
    backbone = TINY_RESNET
