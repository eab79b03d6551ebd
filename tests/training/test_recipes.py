"""Recipes: those that come with the package, keys and types, overrides, and values that depend on the images."""

import json
import re

import pytest
import torch

from modeling_dino import DinoConfig, DinoForPreTraining, Objectives
from modeling_dino.training.arguments import DinoTrainingArguments
from modeling_dino.training.multi_crop import MultiCropConfig
from modeling_dino.training.recipes import AUTO, KEYS, RECIPE_FOLDER, Recipe, load_recipe, recipes
from modeling_dino.training.schedules import Schedules


IMAGENET = 1_281_167
ON_CPU = {"use_cpu": True, "bf16": False}


def arguments(recipe: Recipe, world_size: int = 1, **kwargs):
    return recipe.training_arguments("run", world_size, **ON_CPU, **kwargs)


def test_the_recipes_there_are():
    assert recipes() == [
        "cifar10_resnet18",
        "cifar10_vit_small",
        "continue",
        "dinov2_small_data",
        "dinov2_vit_large",
        "dinov2_vit_large_22k",
        "dinov3_vit_7b",
        "dinov3_vit_7b_gram",
        "dinov3_vit_7b_high_resolution",
        "dinov3_vit_large",
        "fashion_mnist_resnet",
        "photographs",
        "resnet50",
        "small_data",
        "vit_base_100",
        "vit_base_300",
        "vit_small_100",
        "vit_small_300",
    ]


@pytest.mark.parametrize("name", recipes())
def test_each_says_command_cost_and_result_and_works(name):
    head = re.match(r"(#.*\n)+", (RECIPE_FOLDER / f"{name}.yaml").read_text())[0]
    assert f"pretrain {name} --data " in head
    assert all(f"# {said}:" in head for said in ("cost", "expected", "measured here"))
    recipe = load_recipe(name).without_auto(50_000, DinoConfig(backbone="vit_small"))
    config = recipe.config()
    sizes = recipe.crops.of_each_size()
    if len(sizes) == 1:  # else as the original's, whose 168 pixels are 10 patches of 16, and a rest that is not seen
        assert hasattr(config, "depths") or recipe.crops.local_crop_size % config.patch_size == 0
        assert recipe.crops.global_crop_size == config.image_size
    assert arguments(recipe).num_global_crops == 2
    assert "auto" not in recipe.flat().values()


def test_the_originals_arguments():
    """Defaults of main_dino.py, and its README's commands."""
    vanilla = load_recipe("vit_small_100")
    assert vanilla.crops == MultiCropConfig()
    args = arguments(vanilla)
    assert (args.learning_rate, args.final_learning_rate, args.warmup_epochs) == (0.001, 1e-6, 10)
    assert (args.weight_decay, args.final_weight_decay, args.max_grad_norm) == (0.04, 0.4, 3.0)
    assert (args.teacher_momentum, args.warmup_teacher_temperature, args.teacher_temperature) == (0.996, 0.04, 0.04)
    assert (args.optim, args.num_train_epochs, args.freeze_last_layer_epochs) == ("adamw", 100, 1)
    config = vanilla.config()
    assert (config.projection_dim, config.norm_last_layer, config.drop_path_rate) == (65536, True, 0.1)

    boosted = load_recipe("vit_small_300")
    args = arguments(boosted)
    assert (args.num_train_epochs, args.teacher_temperature, args.teacher_temperature_warmup_epochs) == (300, 0.07, 30)
    assert boosted.batch_size == 1024
    assert not boosted.config().norm_last_layer
    assert load_recipe("vit_base_300").config().norm_last_layer

    resnet = load_recipe("resnet50")
    args = arguments(resnet)
    assert (args.optim, args.weight_decay, args.final_weight_decay) == ("sgd", 1e-4, 1e-4)
    assert args.learning_rate == pytest.approx(0.03 * 512 / 256)
    assert resnet.crops.global_crop_scale == (0.14, 1.0)
    assert resnet.crops.local_crop_scale == (0.05, 0.14)


# the originals' settings: GPUs, images on each, learning rate for 1,024 images (DINOv3's is multiplied by 4), steps
PUBLISHED = {
    "dinov2_vit_large": (32, 64, 0.004, 100 * 1250),
    "dinov2_vit_large_22k": (96, 32, 0.0002, 500 * 1250),
    "dinov3_vit_large": (32, 64, 4 * 0.001, 100 * 1250),
    "dinov3_vit_7b": (256, 16, 4 * 5e-5, 1000 * 1000),
    "dinov3_vit_7b_gram": (256, 16, 4 * 3e-5, 200 * 1000),
    "dinov3_vit_7b_high_resolution": (256, 8, 4 * 1.25e-5, 30 * 1000),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipes_of_the_later_originals(name):
    gpus, images, rate, steps = PUBLISHED[name]
    recipe = load_recipe(name)
    args = arguments(recipe)
    assert recipe.batch_size == gpus * images
    steps_per_epoch = IMAGENET // recipe.batch_size
    total = args.max_steps if args.max_steps > 0 else round(args.num_train_epochs * steps_per_epoch)
    assert total == pytest.approx(steps, rel=2e-3)
    found = (args.schedules or {}).get("learning_rate", {}).get("end", args.learning_rate)
    assert found == pytest.approx(rate * (recipe.batch_size / 1024) ** 0.5, rel=1e-4)
    assert (args.ibot_weight, args.koleo_weight, args.clip) == (1.0, 0.1, "module")
    assert args.exact_masks == name.startswith("dinov3")
    with torch.device("meta"):
        model = DinoForPreTraining(recipe.config())
    assert (model.student.patch_head is not None) == (name != "dinov2_vit_large")


def test_the_rates_of_high_resolution():
    """The learning rate rises along half a cosine, from 0, for 10,000 steps of the original's 1,689 million images."""
    schedules = Schedules(arguments(load_recipe("dinov3_vit_7b_high_resolution")), 1_689_000_000 // 2048, 30_000)
    rates = [schedules.rates(step)["learning_rate"] for step in range(30_000)]
    end = 4 * 1.25e-5 * 2**0.5
    assert (rates[0], rates[5000]) == (0, pytest.approx(end / 2, rel=1e-3))
    assert rates[9998] < rates[9999] == pytest.approx(end)
    assert set(rates[9999:]) == {rates[9999]}


SGD_RATES = (0.03 * 2, 1e-4, 1e-4)  # of a batch of 512


def rates(args: DinoTrainingArguments) -> tuple[float, float, float]:
    return args.learning_rate, args.weight_decay, args.final_weight_decay


def test_sgd_has_the_rates_of_the_originals_resnet(tmp_path):
    """Also where a recipe was written for another optimizer; not where a rate is given with it."""
    assert rates(arguments(load_recipe("resnet50"))) == pytest.approx(SGD_RATES)
    sgd = ["training.optim=sgd", "model={backbone: resnet18}"]
    for name in ("vit_small_100", "small_data"):
        recipe = load_recipe(name, [*sgd, "batch_size=512"]).without_auto(10_000)
        assert rates(arguments(recipe)) == pytest.approx(SGD_RATES)
    given = ["base_learning_rate=0.1", "training.weight_decay=0.01"]
    recipe = load_recipe("small_data", [*sgd, *given, "batch_size=64"]).without_auto(10_000)
    assert rates(arguments(recipe)) == (0.025, 0.01, 1e-4)
    assert rates(arguments(load_recipe("vit_small_100", ["training.optim=adamw"]))) == (0.001, 0.04, 0.4)
    (tmp_path / "own.yaml").write_text("batch_size: 512\ntraining: {optim: sgd, final_weight_decay: 0.001}")
    assert rates(arguments(load_recipe(tmp_path / "own.yaml"))) == pytest.approx((0.06, 1e-4, 0.001))
    (tmp_path / "none.yaml").write_text("")
    assert rates(arguments(load_recipe(tmp_path / "none.yaml"))) == (0.001, 0.04, 0.4)


def test_the_losses_of_dinov2(tmp_path):
    args = arguments(load_recipe("dinov2_small_data", ["training.targets=sinkhorn"]).without_auto(10_000))
    assert args.objectives() == Objectives(ibot_weight=1.0, koleo_weight=0.1, targets="sinkhorn")
    assert arguments(load_recipe("small_data").without_auto(10_000)).objectives() == Objectives()
    schedule = {"start": 1, "peak": 1, "end": 0.5, "cosine_epochs": 2}
    text = f"training: {{mask_ratios: [0.2, 0.4], schedules: {{dino_local_weight: {schedule}}}}}".replace("'", "")
    (tmp_path / "own.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "own.yaml")
    assert arguments(recipe).mask_ratios == [0.2, 0.4]
    assert arguments(recipe).schedules == {"dino_local_weight": schedule}
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict(), "so that the run goes on from its facts"
    assert Recipe().replace(recipe.flat()) == recipe


def test_the_rates_that_a_run_takes_are_told():
    recipe = load_recipe("vit_small_100", ["training.optim=sgd"])
    assert "base_learning_rate" not in recipe.flat()
    assert recipe.without_auto(10_000).base_learning_rate == 0.03


def test_a_trainer_of_ones_own_has_them_too(tmp_path):
    def made(**values):
        return rates(DinoTrainingArguments(tmp_path, per_device_train_batch_size=16, **values))

    assert made() == (5e-4 * 16 / 256, 0.04, 0.4)
    assert made(optim="sgd") == (0.03 * 16 / 256, 1e-4, 1e-4)
    assert made(optim="sgd", learning_rate=0.5, weight_decay=0) == (0.5, 0, 1e-4)
    assert made(optim="sgd", gradient_accumulation_steps=4)[0] == 0.03 * 64 / 256


def test_processes_and_accumulation_share_the_batch():
    recipe = load_recipe("vit_small_100", ["training.per_device_train_batch_size=64"])
    for world_size, at_once, accumulated in ((1, 64, 8), (2, 64, 4), (8, 64, 1), (16, 32, 1)):
        args = arguments(recipe, world_size)
        assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (at_once, accumulated)
        assert args.learning_rate == pytest.approx(0.001)
    assert arguments(load_recipe("vit_small_100"), 8).per_device_train_batch_size == 64
    with pytest.raises(ValueError, match="batch_size=512 is not a multiple of 3 processes x 64 images"):
        arguments(recipe, 3)


def test_overrides():
    recipe = load_recipe(
        "vit_small_100",
        [
            "batch_size=64",
            "model.depths=null",
            "model.head_use_bn=true",
            "crops.num_local_crops=6",
            "crops.local_crop_scale=[0.1, 0.3]",
            "training.learning_rate=1e-4",
            "training.optim=sgd",
            "training.save_steps=0.1",
            "training.save_strategy=no",
        ],
    )
    assert recipe.crops.num_local_crops == 6
    assert recipe.crops.local_crop_scale == (0.1, 0.3)
    assert recipe.model["head_use_bn"] is True
    args = arguments(recipe)
    assert (args.learning_rate, args.optim, args.save_steps, args.save_strategy) == (1e-4, "sgd", 0.1, "no")
    assert recipe.crops.global_crop_scale == load_recipe("vit_small_100").crops.global_crop_scale
    assert Recipe().replace(recipe.flat()) == recipe, "what is written into the facts is a recipe again"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("crops.num_local_crop=6", r"unknown key 'crops.num_local_crop': did you mean crops.num_local_crops\?"),
        ("teacher_momentum=1", r"did you mean training.teacher_momentum\?"),
        ("model.backbon=vit_tiny", r"did you mean model.backbone\?"),
        ("zzz=1", "there are batch_size, base_learning_rate, model.backbone"),
        ("training.output_dir=x", "set by --output"),
        ("training.gradient_accumulation_steps=2", "set by batch_size and training.per_device"),
        ("crops.num_local_crops=many", "crops.num_local_crops='many' must be a whole number"),
        ("crops.num_local_crops=1.5", "must be a whole number"),
        ("crops.num_local_crops=true", "must be a whole number"),
        ("crops.global_crop_scale=0.4", "must be a list of numbers"),
        ("crops.global_crop_scale=[0.4, 2]", "global_crop_scale=.* must be two numbers above 0 to 1"),
        ("model.norm_last_layer=perhaps", "must be true or false"),
        ("base_learning_rate=.nan", "must be a number"),
        ("crops.hue=auto", "crops.hue='auto' must be a number; only batch_size, .* can be auto"),
        ("batch_size=many", "batch_size='many' must be a whole number"),
        ("batch_size=0", "batch_size=0 must be at least 1"),
        ("batch_size", "not of the form key=value"),
        ("batch_size=[", "no YAML"),
        ("batch_size=null", "batch_size=None must be a whole number"),
        ("batch_size=${oc.env:HOME}", r"batch_size='\$\{oc.env:HOME\}' must be a whole number"),
        ("training.run_name=${oc.env:HOME}", r"run_name='\$\{oc.env:HOME\}' must be a text"),
        ("training.run_name=2020-01-01", "must be a text"),
        ("training.run_name=!!python/object/apply:os.getcwd []", "is no YAML"),
        ("training.seed=many", "training.seed='many' must be a whole number"),
        ("training.seed=1.5", "training.seed=1.5 must be a whole number"),
        ("training.seed=null", "training.seed=None must be a whole number"),
        ("training.bf16=1", "training.bf16=1 must be true or false"),
        ("training.optim=3", "training.optim=3 must be a text"),
        ("training.learning_rate=fast", "must be a number"),
        ("training.learning_rate=[1]", "must be a number"),
        ("training.fsdp_config=3", "must be keys and values"),
        ("model=3", "model must have keys and values of its own"),
        ("model.backbone.name=vit", "must be a text"),
        ("=3", "unknown key ''"),
        ("training.schedules=3", "training.schedules=3 must be keys and values"),
        ("training.mask_ratios=0.5", "training.mask_ratios=0.5 must be a list of numbers"),
        ("training.ibot_weight=many", "training.ibot_weight='many' must be a number"),
        ("crops.global_crop_size=large", "global_crop_size='large' must be a whole number, or a list of them"),
        ("crops.global_crop_size=[32, 1.5]", "must be a whole number, or a list of them"),
        ("crops.global_crop_size=[]", "lists of crop sizes must be of one length: global_crop_size has 0"),
        ("crops.global_crop_size=[224, 0]", "global_crop_size=0 must be at least 1"),
        ("crops.size_shares=[1, 2]", "size_shares goes with several sizes of crops: give lists of them"),
        ("crops.gram_crop_size=100", "gram_crop_size=100 must be at least global_crop_size=224"),
        ("image_mean=0.5", "image_mean=0.5 must be a list of numbers"),
        ("image_mean=[a]", "must be a list of numbers"),
        ("image_std=[0, 1, 1]", "image_std=.* must be greater than 0"),
        ("crops.hue=" + "[" * 5000, "nested too deeply"),
        ("crops.hue=" + "9" * 5000, "4300 digits"),
        ("crops.hue=1" + "0" * 400, "must be a number"),
        ("crops.hue=[" + "1," * 2000 + "]", r"crops.hue=\[1, 1.*… must be a number"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(override, says):
    with pytest.raises(ValueError, match=says) as raised:
        load_recipe("vit_small_100", [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["local_crop_size=[96]"], "of one length: global_crop_size has 2, local_crop_size has 1"),
        (["size_shares=[1]"], "of one length: global_crop_size has 2, size_shares has 1"),
        (["size_shares=[1, 0]"], "size_shares=.* must be above 0"),
        (["gram_crop_size=[512, 700]"], "gram_crop_size=700 must be at least global_crop_size=768"),
    ],
)
def test_sizes_of_crops_that_do_not_go_together(overrides, says):
    with pytest.raises(ValueError, match=says):
        load_recipe("vit_small_100", [f"crops.{override}" for override in ["global_crop_size=[512, 768]", *overrides]])


def test_several_sizes_of_crops():
    sizes = ["crops.global_crop_size=[512, 768]", "crops.gram_crop_size=[768, 1152]", "crops.size_shares=[3, 7]"]
    recipe = load_recipe("vit_small_100", sizes)
    of_sizes = recipe.crops.of_each_size()
    assert [(one.global_crop_size, one.local_crop_size, one.gram_crop_size) for one in of_sizes] == [
        (512, 96, 768),
        (768, 96, 1152),
    ]
    assert all(one.size_shares is None for one in of_sizes)
    assert Recipe().replace(recipe.flat()) == recipe
    assert "size_shares" not in load_recipe("vit_small_100").to_dict()["crops"]


def test_files(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("batch_size: 8\nmodel: {backbone: vit_tiny}\ncrops: {num_local_crop: 3}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: unknown key 'crops.num_local_crop': did you mean"):
        load_recipe(str(file))
    for content, says in (
        ("model: 3", "model must have keys"),
        ("- a", "made of keys"),
        ("a: [", "is no YAML"),
        ("1: 2", "unknown key '1'"),
        ("a: 1\nb: &x [1]\nc: [*x, *x]", r"has an alias \(\*\)"),
        ("batch_size: 8\nbatch_size: 9", "the key batch_size is there twice"),
        ("3", "made of keys"),
        ("[" * 10_000, "nested too deeply"),
        ("# " + "x" * 2**20, "too large for a recipe"),
        ("? [1]\n: 2", "is no YAML"),
        ("\0", "is no YAML"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=says):
            load_recipe(str(file))
    file.write_text("")
    assert load_recipe(str(file)) == Recipe()
    with pytest.raises(ValueError, match="no such file"):
        load_recipe(str(tmp_path / "other.yaml"))
    with pytest.raises(ValueError, match=r"unknown recipe 'vit_smal_100': did you mean vit_small_100\? allowed are"):
        load_recipe("vit_smal_100")


def test_a_recipe_that_is_no_text(tmp_path):
    (tmp_path / "mine.yaml").write_bytes("batch_size: 8".encode("utf-16"))
    with pytest.raises(ValueError, match=r"mine\.yaml: is no YAML in UTF-8"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_numbers_may_be_written_as_others():
    recipe = load_recipe(
        "small_data", ["training.seed=2e5", "crops.hue=0", "crops.crop_ratio=[1, 1]", "batch_size=8."]
    )
    assert repr(recipe.training["seed"]) == "200000"
    assert repr((recipe.crops.hue, recipe.crops.crop_ratio, recipe.batch_size)) == "(0.0, (1.0, 1.0), 8)"


def test_the_image_transform():
    recipe = load_recipe("small_data", ["image_mean=[0, 0.5, 1]", "image_std=[1, 1, 1]", "rescale_factor=1e-3"])
    assert recipe.image_transform == {"image_mean": [0, 0.5, 1], "image_std": [1, 1, 1], "rescale_factor": 1e-3}
    assert not load_recipe("small_data").image_transform
    assert "image_mean" not in load_recipe("small_data").to_dict(), "a run of a version without it is the same"
    assert "gram_distorted" not in load_recipe("small_data").to_dict()["crops"]
    undistorted = load_recipe("small_data", ["crops.gram_distorted=false"])
    assert undistorted.replace({}).crops.gram_distorted is False
    assert Recipe().replace(recipe.flat()) == recipe


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.report_to=wandb", "report_to=wandb: wandb is not installed"),
        ("training.report_to=nobody", "nobody"),
        ("training.num_train_epochs=0", "num_train_epochs=0 must be greater than 0"),
        ("training.accelerator_config={nonsense: 1}", "nonsense"),
        ("training.logging_strategy=sometimes", "sometimes"),
    ],
)
def test_what_the_trainer_refuses_is_a_value_error(override, says):
    with pytest.raises((ValueError, ImportError), match=says) as raised:
        arguments(load_recipe("vit_small_100", [override]))
    assert "\n" not in str(raised.value)


def test_keys_are_those_of_the_configurations():
    assert {"model.depths", "crops.hue", "training.teacher_momentum", "training.num_train_epochs"} <= set(KEYS)
    assert not {"model.id2label", "model._out_features", "training.output_dir"} & set(KEYS)
    assert set(AUTO) <= set(KEYS)
    for key in [key for key in KEYS if key.startswith("model.") and key != "model.depths"]:
        assert hasattr(DinoConfig(), key.removeprefix("model."))


@pytest.mark.slow
def test_small_data_goes_by_the_number_of_images():
    def picked(num_images):
        recipe = load_recipe("small_data").without_auto(num_images)
        return (
            recipe.batch_size,
            recipe.model["projection_dim"],
            recipe.training["teacher_momentum"],
            recipe.training["teacher_temperature"],
        )

    assert picked(60)[:2] == (8, 64)
    assert picked(700)[:2] == (64, 128)
    assert [picked(n)[1] for n in (1023, 1024)] == [128, 256]
    assert picked(50_000)[:2] == (512, 8192)
    assert picked(IMAGENET)[:2] == (512, 65536)
    momenta = [picked(n)[2] for n in (60, 700, 50_000, IMAGENET)]
    assert momenta == sorted(momenta)
    assert momenta[0] >= 0.95
    assert momenta[-1] == pytest.approx(0.9995)
    assert [picked(n)[3] for n in (60, 50_000)] == [0.04, 0.07]
    kept = load_recipe("small_data", ["training.teacher_momentum=0.9"]).without_auto(60)
    assert kept.training["teacher_momentum"] == 0.9
