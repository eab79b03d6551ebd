"""transformers' own common tests, on one configuration of each kind of backbone for each class."""

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
TINY_XCIT = {**TINY_VIT, "backbone": "xcit_tiny_12"}
TINY_VIT |= {"use_mask_token": True}
TINY_DINOV2 = {**TINY_VIT, "num_register_tokens": 2, "use_swiglu_ffn": True, "layerscale_value": 0.5}
TINY_DINOV3 = {**TINY_VIT, "num_register_tokens": 3, "rope_theta": 100.0, "key_bias": False, "layerscale_value": 0.5}
TINY_CONVNEXT = {"backbone": "convnext_tiny", "hidden_sizes": [16, 32], "depths": [1, 1], "patch_size": None}
TINY_RESNET = {"backbone": "resnet18", "hidden_size": 32, "depths": [1, 1]}


class DinoModelTester:
    """Makes configurations and inputs; the mixins read its attributes."""

    batch_size = 3
    image_size = 16
    is_training = True

    def __init__(self, parent, backbone: dict, **config):
        self.parent = parent
        size = {"image_size": self.image_size, "patch_size": 8 if "xcit" in backbone["backbone"] else 4}
        self.config = {**TINY_HEAD, **size, "num_labels": 3, **backbone, **config}
        built = self.get_config()
        self.hidden_size = built.hidden_size
        self.num_hidden_layers = built.num_hidden_layers
        self.num_attention_heads = built.num_attention_heads
        if built.patch_size is not None:
            self.num_masks, self.mask_length = 3, (self.image_size // built.patch_size) ** 2
            self.seq_length = 1 + built.num_register_tokens + self.mask_length

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

    def check_training_gradient_checkpointing(self, *args, **kwargs):
        """Narrowed: without the mask token, which has no gradient where nothing is masked."""
        with unittest.mock.patch.dict(self.model_tester.config, use_mask_token=False):
            super().check_training_gradient_checkpointing(*args, **kwargs)

    def test_model_get_set_embeddings(self):
        """Overridden: the common test wants an `nn.Embedding`; the first layer of an image model is a convolution."""
        for model_class in self.all_model_classes:
            self.assertIsInstance(model_class(self.model_tester.get_config()).get_input_embeddings(), torch.nn.Conv2d)


class Dinov2ModelTest(ViTModelTest):
    backbone = TINY_DINOV2


class Dinov3ModelTest(ViTModelTest):
    backbone = TINY_DINOV3


class ResNetModelTest(ViTModelTest):
    has_attentions = False
    backbone = TINY_RESNET
    hidden_state_shapes = [(16, 16, 16), (16, 16, 16), (32, 8, 8)]

    def test_capture_outputs_decorator(self):
        """Narrowed: asks for hidden states alone, since a ResNet refuses to be asked for attention."""
        with unittest.mock.patch.dict(DinoModel._can_record_outputs):
            del DinoModel._can_record_outputs["attentions"]
            super().test_capture_outputs_decorator()

    def test_hidden_states_output(self):
        """Overridden: the common test wants tokens (T, D); here hidden states are maps (C, h, w), or patches alone."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).eval()
            with torch.no_grad():
                hidden_states = model(**inputs, output_hidden_states=True).hidden_states
            shapes = [tuple(hidden_state.shape[1:]) for hidden_state in hidden_states]
            self.assertEqual(shapes, self.hidden_state_shapes)


class ConvNeXtModelTest(ResNetModelTest):
    backbone = TINY_CONVNEXT
    hidden_state_shapes = [(16, 4, 4), (16, 4, 4), (32, 2, 2)]


class XcitModelTest(ResNetModelTest):
    backbone = TINY_XCIT
    hidden_state_shapes = [(4, 32)] * 3


class ViTBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (DinoBackbone,)
    config_class = DinoConfig
    backbone = TINY_VIT

    def setUp(self):
        self.model_tester = DinoModelTester(self, self.backbone, out_features=["stage1", "stage2"])


class Dinov2BackboneTest(ViTBackboneTest):
    backbone = TINY_DINOV2


class Dinov3BackboneTest(ViTBackboneTest):
    backbone = TINY_DINOV3


class ResNetBackboneTest(ViTBackboneTest):
    has_attentions = False
    backbone = TINY_RESNET


class ConvNeXtBackboneTest(ResNetBackboneTest):
    backbone = TINY_CONVNEXT


class XcitBackboneTest(ResNetBackboneTest):
    backbone = TINY_XCIT
