"""Files of versions before 0.2 load: their names are found, and what they hold is built as it was."""

import pickle
from dataclasses import asdict
from typing import Any

import pytest
import torch
from _factory import SLIM_LOGICAL, make_model
from torch import nn

from anomalib_npgmf import Npgmf
from anomalib_npgmf.backbone import AntialiasedResize, Backbone
from anomalib_npgmf.composition.histogram import CodeHistograms
from anomalib_npgmf.config import ModelConfig, resolve
from anomalib_npgmf.export.metadata import KEY
from anomalib_npgmf.host.moved import MAP_WEIGHTS, rename_tensors
from anomalib_npgmf.host.post_processor import CalibratedPostProcessor
from anomalib_npgmf.host.rebuild import model_config
from anomalib_npgmf.host.visualizer import NpgmfVisualizer
from anomalib_npgmf.merging import CompositionMerger, MapMerger
from anomalib_npgmf.structural import MemoryBank

BEFORE = {
    "backbone Backbone": Backbone,
    "composition.reading Reading": CodeHistograms,
    "logical.small_maps DoublingConv2d": nn.ConvTranspose2d,
    "logical.small_maps HalvingConv2d": nn.Conv2d,
    "merging CompositionMerger": CompositionMerger,
    "merging MapMerger": MapMerger,
    "post_processor CalibratedPostProcessor": CalibratedPostProcessor,
    "presets ModelConfig": ModelConfig,
    "resize AntialiasedResize": AntialiasedResize,
    "structural.memory_bank MemoryBank": MemoryBank,
    "visualizer NpgmfVisualizer": NpgmfVisualizer,
}
SETTINGS = {"codebook_sizes": (3,), "codebooks": 1, "grid_codebook_sizes": (4,)}


@pytest.mark.parametrize("name", BEFORE)
def test_classes_are_found_where_they_were(name: str) -> None:
    module, _, attribute = name.partition(" ")
    stored = f"canomalib_npgmf.{module}\n{attribute}\n.".encode()  # pickle's instruction to look up a class
    assert pickle.loads(stored) is BEFORE[name]


def test_other_modules_stay_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        pickle.loads(b"canomalib_npgmf.no_such_module\nModelConfig\n.")


def test_pickled_composition_of_before() -> None:
    model = make_model(composition=SETTINGS)
    branch = model.model.composition
    assert branch is not None
    branch._modules["readings"] = branch._modules.pop("histograms")
    branch._buffers["held_out"] = branch._buffers.pop("cv_stats")
    merger = model.model.merger.composition
    assert merger is not None
    for name in ("normal_level", "margins", *MAP_WEIGHTS, "logical_map_weight", "logical_map_limit"):
        del merger._buffers[name]
    vars(branch).pop("grids", None)  # files of before have no such attribute
    restored = pickle.loads(pickle.dumps(model))
    assert isinstance(restored, Npgmf)
    features = [torch.rand(1, channels, 8, 8) for channels in branch.channels]
    assert restored.model.composition(features, (16, 16)).surplus.shape == (1, 4, 16, 16)
    assert restored.model.merger.composition.margins.tolist() == [0.0, 0.25]
    assert restored.model.merger.composition.weight.tolist() == [45.0, 45.0, 240.0, 240.0]
    assert restored.model.merger.composition.largest_lead.tolist() == [2.0, 2.0, 1.0, 1.0]
    assert restored.model.merger.composition.further_lead.tolist() == [0.0, 0.0, 3.0, 3.0]
    assert restored.model.merger.composition.logical_map_weight.item() == 0.0
    assert restored.state_dict().keys() == make_model(composition=SETTINGS).state_dict().keys()


def test_a_merger_without_a_further_lead_takes_the_present_one() -> None:
    """A pickled file from between 0.1 and 0.2; its other weights stay."""
    model = make_model(composition=SETTINGS)
    merger = model.model.merger.composition
    assert merger is not None
    merger.weight.fill_(7.0)
    del merger._buffers["further_lead"]
    restored = pickle.loads(pickle.dumps(model)).model.merger.composition
    assert restored.further_lead.tolist() == [0.0, 0.0, 3.0, 3.0]
    assert restored.weight.tolist() == [7.0] * 4


def test_weights_that_no_network_took_do_not_bar_a_checkpoint_of_before() -> None:
    stored = asdict(resolve("small", {})) | {"structural_backbone_weights": "ignored.pth"}
    assert model_config(stored, "0.1.0") == resolve("small", {})


def test_tensors_of_a_checkpoint_of_before() -> None:
    state = make_model(composition=SETTINGS).state_dict()
    before = {
        name.replace("composition.histograms.", "composition.readings.").replace("cv_stats", "held_out"): value
        for name, value in state.items()
    }
    assert "model.composition.held_out" in before
    names = ("normal_level", "margins", "logical_map_weight", "logical_map_limit")
    added = [f"model.merger.composition.{name}" for name in names]
    for name in added:
        del before[name]
    rename_tensors(before)
    assert before.keys() == state.keys()
    assert all(before[name] is value for name, value in state.items() if name not in added)
    assert before[added[1]].tolist() == [0.0, 0.25]
    assert before[added[2]].item() == 0.0


def test_merger_of_before_gives_the_scores_and_the_map_of_the_branches() -> None:
    merger = CompositionMerger([1])
    merger.margins.copy_(torch.tensor([0.0, 0.25]))
    merger.calibrate(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]), normal_level=1.0)
    # Below the mean, so that the composition has a lead to show.
    branches, surplus, distance = 1.5 * torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8), torch.tensor([[3.0]])
    raised = merger.raised(surplus, distance, branches)
    expected = merger(branches, raised, distance)
    score = torch.maximum(branches.max() - 2.0, torch.tensor(3.0 - 2.0 - 0.25))  # mean 2, standard deviation 1
    torch.testing.assert_close(expected.scores, score.view(1))
    assert (expected.maps > merger.of_branches(branches)).any()
    merger.normal_level.fill_(-torch.inf)
    found = merger(branches, raised, distance)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.maps, merger.of_branches(branches))


BLOCKS = {"small": 1, "paper": 1, "literal": 3}  # per decoding block; literal's were not those of ResNet101


def arguments_of(preset: str) -> dict[str, Any]:
    """Arguments of a training at 128 pixels, where the dilations have changed."""
    logical = {**SLIM_LOGICAL, "decoder_blocks": 1, "embedding_channels": 32}
    if preset == "literal":
        del logical["decoder_blocks"]  # the preset's
    options = {"backbone": "test_resnet", "backbone_weights": "random", "text_prior": "learned"}
    return {"preset": preset, "branches": "logical", "logical_image_size": 128, "logical": logical, **options}


def of_before(preset: str) -> tuple[Npgmf, dict[str, Any]]:
    """A model as versions before built it, and its checkpoint, which names no configuration."""
    given = arguments_of(preset)
    former = {"dilations": "level", "rectify_embedding": False, "decoder_blocks": BLOCKS[preset]}
    torch.manual_seed(0)
    model = Npgmf(
        **given | {"logical": given["logical"] | former, "structural": {"whiten": False, "neighbourhood": (3,)}}
    ).eval()
    model.model.merger.calibrate({"logical": (1.0, 0.5)})
    metadata = {name: value for name, value in model.describe().items() if name != "configuration"}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return model, {"state_dict": state, "hyper_parameters": given, KEY: metadata}


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("preset", BLOCKS)
def test_checkpoints_of_before_keep_their_results(preset: str, bare: bool) -> None:
    """Dilations are no tensors: built as today, the model would load and give other maps."""
    model, checkpoint = of_before(preset)
    options = {} if bare else arguments_of(preset)
    if bare and preset != "paper":  # another default would have to be built in full first
        options = {"preset": preset, "backbone": "test_resnet", "branches": "logical"}
    elif bare:
        options = {"backbone": "test_resnet", "branches": "logical"}
    restored = Npgmf(**options).eval()
    restored.on_load_checkpoint(checkpoint)
    restored.load_state_dict(checkpoint["state_dict"])
    assert restored.settings == model.settings
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(restored.model(image).anomaly_map, model.model(image).anomaly_map)
    assert restored.describe()["configuration"]["logical"]["dilations"] == "level", "and stays so when saved again"


def test_what_differs_from_a_checkpoint_of_before_is_named() -> None:
    _, checkpoint = of_before("small")
    other = Npgmf(**arguments_of("small") | {"logical_image_size": 256})
    with pytest.raises(ValueError, match=r"made with logical_image_size \[128, 128\] \(not \[256, 256\]\)"):
        other.on_load_checkpoint(checkpoint)


def test_pickled_settings_of_before() -> None:
    model, _ = of_before("small")
    for name in ("dilations", "rectify_embedding", "clip_model", "captions"):
        del vars(model.settings.logical)[name]
    restored = pickle.loads(pickle.dumps(model))
    assert (restored.settings.logical.dilations, restored.settings.logical.rectify_embedding) == ("level", False)
