"""Files of versions before 0.2 load: their names of modules, classes and tensors are found."""

import pickle

import pytest
import torch
from _factory import make_model
from torch import nn

from anomalib_npgmf import Npgmf
from anomalib_npgmf.backbone import AntialiasedResize, Backbone
from anomalib_npgmf.composition.histogram import CodeHistograms
from anomalib_npgmf.config import ModelConfig
from anomalib_npgmf.host.moved import rename_tensors
from anomalib_npgmf.host.post_processor import CalibratedPostProcessor
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
    del merger._buffers["normal_level"]
    restored = pickle.loads(pickle.dumps(model))
    assert isinstance(restored, Npgmf)
    assert restored.state_dict().keys() == make_model(composition=SETTINGS).state_dict().keys()


def test_tensors_of_a_checkpoint_of_before() -> None:
    state = make_model(composition=SETTINGS).state_dict()
    before = {
        name.replace("composition.histograms.", "composition.readings.").replace("cv_stats", "held_out"): value
        for name, value in state.items()
    }
    assert "model.composition.held_out" in before
    level = "model.merger.composition.normal_level"
    del before[level]
    rename_tensors(before)
    assert before.keys() == state.keys()
    assert all(before[name] is value for name, value in state.items() if name != level)


def test_merger_of_before_gives_the_scores_and_the_map_of_the_branches() -> None:
    merger = CompositionMerger()
    merger.calibrate(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]), normal_level=1.0)
    branches, surplus, distance = torch.randn(1, 1, 8, 8), torch.rand(1, 1, 8, 8), torch.tensor([9.0])
    expected = merger(branches, surplus, distance)
    assert (expected.maps > merger.of_branches(branches)).any()
    merger.normal_level.fill_(-torch.inf)
    found = merger(branches, surplus, distance)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.maps, merger.of_branches(branches))
