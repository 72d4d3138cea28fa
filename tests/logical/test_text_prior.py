"""Text prior: the caption, CLIP's tower from local files, and what happens without a hub."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from anomalib_npgmf.config import resolve
from anomalib_npgmf.logical.text_prior import (
    CLIP_MODEL,
    TEXT_DIM,
    TextPrior,
    caption_of,
    captions_of,
    encode_caption,
    text_dim_of,
)
from anomalib_npgmf.torch_model import NpgmfModel

TINY = "npgmf-test-tiny"
QUICK = f"{TINY}-quickgelu"
ACTIVATIONS = {"quick": lambda x: x * torch.sigmoid(1.702 * x), "exact": functional.gelu}


@pytest.fixture(scope="module", autouse=True)
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """CLIP's architecture, a thousandth of its size, under names of its own: as open_clip has it, and as OpenAI."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    for name, changes in ((TINY, {}), (QUICK, {"quick_gelu": True})):
        (folder / f"{name}.json").write_text(json.dumps(config | changes))
        open_clip.add_model_config(folder / f"{name}.json")
    yield
    for name in (TINY, QUICK):
        open_clip.factory._MODEL_CONFIGS.pop(name)
        open_clip.factory._MODEL_CONFIG_PATHS.remove(folder / f"{name}.json")


def tiny_weights() -> dict[str, torch.Tensor]:
    """Seeded weights of the text tower, large enough to make the activation felt."""
    generator = torch.Generator().manual_seed(0)
    names = {n: v for n, v in open_clip.create_model(TINY, pretrained=None).state_dict().items() if "visual." not in n}
    return {name: torch.randn(value.shape, generator=generator) / 4 for name, value in names.items()}


def embedding_by_hand(state: dict[str, torch.Tensor], caption: str, activation: str) -> torch.Tensor:
    """CLIP's text tower, written out: two pre-norm transformer blocks of two heads with a causal mask."""
    tokens = open_clip.get_tokenizer(TINY)([caption])[0]
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    for block in ("transformer.resblocks.0.", "transformer.resblocks.1."):
        at = {name.removeprefix(block): value for name, value in state.items() if name.startswith(block)}
        y = functional.layer_norm(x, (16,), at["ln_1.weight"], at["ln_1.bias"])
        y = functional.linear(y, at["attn.in_proj_weight"], at["attn.in_proj_bias"])
        q, k, v = y.view(77, 3, 2, 8).permute(1, 2, 0, 3)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(77, 16)
        x = x + functional.linear(y, at["attn.out_proj.weight"], at["attn.out_proj.bias"])
        y = functional.layer_norm(x, (16,), at["ln_2.weight"], at["ln_2.bias"])
        y = ACTIVATIONS[activation](functional.linear(y, at["mlp.c_fc.weight"], at["mlp.c_fc.bias"]))
        x = x + functional.linear(y, at["mlp.c_proj.weight"], at["mlp.c_proj.bias"])
    x = functional.layer_norm(x, (16,), state["ln_final.weight"], state["ln_final.bias"])
    return functional.normalize(x[tokens.argmax()] @ state["text_projection"], dim=0)


@pytest.mark.parametrize(
    ("category", "caption"),
    [
        ("breakfast_box", "Breakfast Box"),
        ("metal-nut", "Metal Nut"),
        (" screw__bag ", "Screw Bag"),
        ("HAZELNUT", "Hazelnut"),
        ("01", "01"),
        ("", ""),
    ],
)
def test_caption_is_the_category_in_title_case(category: str, caption: str) -> None:
    assert caption_of(category) == caption


def test_untrained_tower_needs_no_network() -> None:
    embedding = encode_caption("Breakfast Box", model_name=TINY, weights="random")
    assert embedding.shape == (12,)
    assert embedding.norm().item() == pytest.approx(1.0)
    assert not embedding.requires_grad


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("whole", [True, False])
def test_local_file_gives_the_embedding_of_its_tower(tmp_path: Path, suffix: str, whole: bool) -> None:
    """A file of the whole CLIP or of its text tower alone."""
    model = open_clip.create_model(TINY, pretrained=None).eval()
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(TINY)(["Juice Bottle"]))[0]
    state = {n: v.contiguous() for n, v in model.state_dict().items() if whole or not n.startswith("visual.")}
    path = tmp_path / f"clip{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    embedding = encode_caption("Juice Bottle", model_name=TINY, weights=path)
    torch.testing.assert_close(embedding, expected / expected.norm())
    assert not torch.allclose(embedding, encode_caption("Pushpins", model_name=TINY, weights=path)), "the words matter"


def test_file_that_does_not_fit_names_the_first_keys(tmp_path: Path) -> None:
    state = open_clip.create_model(TINY, pretrained=None).state_dict()
    del state["token_embedding.weight"]
    state["positional_embedding"] = torch.zeros(3, 16)
    torch.save(state, tmp_path / "clip.pth")
    sentence = (
        rf"clip.pth does not fit the text tower of CLIP {TINY}: 1 missing, first token_embedding.weight; "
        r"1 of another shape, first positional_embedding \(3, 16\) instead of \(77, 16\)"
    )
    with pytest.raises(ValueError, match=sentence):
        encode_caption("Pushpins", model_name=TINY, weights=tmp_path / "clip.pth")


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file at nowhere\.pth"):
        encode_caption("Pushpins", model_name=TINY, weights="nowhere.pth")


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match=r"no model 'ViT-Q-1'; see open_clip.list_models"):
        encode_caption("Pushpins", model_name="ViT-Q-1", weights="random")


def test_without_a_hub_the_error_names_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(RuntimeError, match=r"ConnectionError.*clip_weights, or set text_prior to 'learned' or 'none'"):
        encode_caption("Pushpins")


@pytest.mark.parametrize(
    ("model_name", "openais", "activation"),
    [(QUICK, False, "quick"), (TINY, False, "exact"), (TINY, True, "quick"), (QUICK, True, "quick")],
)
def test_local_file_is_computed_with_the_activation_of_its_training(
    tmp_path: Path, model_name: str, openais: bool, activation: str
) -> None:
    """The architecture's name tells it; OpenAI's own files tell it themselves."""
    state = tiny_weights()
    torch.save(state | ({"input_resolution": torch.tensor(32)} if openais else {}), tmp_path / "clip.pt")
    expected = {name: embedding_by_hand(state, "Screw Bag", name) for name in ACTIVATIONS}
    assert (expected["quick"] - expected["exact"]).abs().max() > 1e-3
    found = encode_caption("Screw Bag", model_name=model_name, weights=tmp_path / "clip.pt")
    torch.testing.assert_close(found, expected[activation], rtol=1e-4, atol=1e-5)


def test_default_architecture_is_openais() -> None:
    config = open_clip.get_model_config(CLIP_MODEL)
    assert config["quick_gelu"] is True
    assert config["embed_dim"] == text_dim_of(CLIP_MODEL) == TEXT_DIM
    assert resolve("paper", {}).logical.clip_model == CLIP_MODEL


@pytest.mark.parametrize(
    ("model_name", "weights", "asked"),
    [
        (CLIP_MODEL, None, ("openai", True)),
        ("ViT-B-32", None, ("openai", True)),
        ("ViT-B-32", "laion2b_s34b_b79k", ("laion2b_s34b_b79k", False)),
        ("ViT-B-32", "laion400m_e32", ("laion400m_e32", True)),
    ],
)
def test_published_weights_get_the_activation_of_their_training(
    monkeypatch: pytest.MonkeyPatch, model_name: str, weights: str | None, asked: tuple[str, bool]
) -> None:
    seen: list[tuple[str, str, bool]] = []

    def create(name: str, pretrained: str, *, force_quick_gelu: bool) -> torch.nn.Module:
        seen.append((name, pretrained, force_quick_gelu))
        return original(TINY, pretrained=None)

    original = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", create)
    encode_caption("Pushpins", model_name=model_name, weights=weights)
    assert seen == [(model_name, *asked)]


def test_several_captions_give_the_mean_of_their_embeddings(tmp_path: Path) -> None:
    torch.save(tiny_weights(), tmp_path / "clip.pt")
    both = captions_of("Pushpins", ["{}", "a photo of {}."])
    assert both == ["Pushpins", "a photo of Pushpins."]
    single = [encode_caption(caption, model_name=TINY, weights=tmp_path / "clip.pt") for caption in both]
    mean = encode_caption(*both, model_name=TINY, weights=tmp_path / "clip.pt")
    torch.testing.assert_close(mean, functional.normalize(single[0] + single[1], dim=0))
    assert not torch.allclose(mean, single[0], atol=1e-3)


def test_the_priors_width_follows_the_architecture() -> None:
    settings = {"backbone": "test_resnet", "logical_image_size": 128, "text_prior": "clip", "branches": "logical"}
    for name, width in ((TINY, 12), ("ViT-L-14", 768), (CLIP_MODEL, TEXT_DIM)):
        model = NpgmfModel(resolve("small", settings, {"clip_model": name}))
        assert model.logical is not None
        assert model.logical.text_prior is not None
        assert model.logical.text_prior.embedding.shape == (width,)
    with pytest.raises(ValueError, match=r"no model 'ViT-Q-1'"):
        NpgmfModel(resolve("small", settings, {"clip_model": "ViT-Q-1"}))


def test_captions_must_not_be_empty() -> None:
    with pytest.raises(ValueError, match=r"captions must be a list, .* at least 1"):
        resolve("small", {}, {"captions": []})


def test_context_is_the_linear_image_of_the_embedding() -> None:
    prior = TextPrior("clip", dim=3, grid=2, embedding_dim=5)
    assert prior.embedding.tolist() == [0.0] * 5
    embedding = torch.randn(5)
    prior.set_embedding(embedding)
    torch.testing.assert_close(prior(), prior.linear(embedding).view(1, 3, 2, 2))


def test_embedding_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"has \(7,\) values, the model takes 5"):
        TextPrior("clip", dim=3, embedding_dim=5).set_embedding(torch.zeros(7))


@pytest.mark.parametrize(("kind", "trained"), [("clip", False), ("random", False), ("learned", True)])
def test_only_the_learned_prior_is_trained_and_all_are_stored(kind: str, trained: bool) -> None:
    prior = TextPrior(kind, dim=3, embedding_dim=5)
    assert ("embedding" in dict(prior.named_parameters())) is trained
    assert "embedding" in prior.state_dict()
    restored = TextPrior(kind, dim=3, embedding_dim=5)
    restored.load_state_dict(prior.state_dict())
    assert torch.equal(restored(), prior())
    if kind != "clip":
        assert prior.embedding.norm().item() == pytest.approx(1.0)


def test_models_are_built_without_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only whoever embeds a caption needs open_clip: a trained model loads where it cannot be imported."""
    monkeypatch.setitem(sys.modules, "open_clip", None)
    prior = TextPrior("clip", 4)
    prior.load_state_dict(TextPrior("clip", 4).state_dict())
    assert prior().shape == (1, 4, 1, 1)
    with pytest.raises(ImportError):
        encode_caption("Pushpins")
