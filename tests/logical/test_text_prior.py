"""Text prior: the caption, CLIP's tower from local files, and what happens without a hub."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from anomalib_npgmf.logical.text_prior import TextPrior, caption_of, encode_caption

TINY = "npgmf-test-tiny"


@pytest.fixture(scope="module", autouse=True)
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """CLIP's architecture, a thousandth of its size, under a name of its own."""
    path = tmp_path_factory.mktemp("clip") / f"{TINY}.json"
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    path.write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(path)
    yield
    open_clip.factory._MODEL_CONFIGS.pop(TINY)
    open_clip.factory._MODEL_CONFIG_PATHS.remove(path)


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
    embedding = encode_caption("Breakfast Box", TINY, weights="random")
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
    embedding = encode_caption("Juice Bottle", TINY, weights=path)
    torch.testing.assert_close(embedding, expected / expected.norm())
    assert not torch.allclose(embedding, encode_caption("Pushpins", TINY, weights=path)), "the words matter"


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
        encode_caption("Pushpins", TINY, weights=tmp_path / "clip.pth")


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file at nowhere\.pth"):
        encode_caption("Pushpins", TINY, weights="nowhere.pth")


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match=r"no model 'ViT-Q-1'; see open_clip.list_models"):
        encode_caption("Pushpins", "ViT-Q-1", weights="random")


def test_without_a_hub_the_error_names_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(RuntimeError, match=r"ConnectionError.*clip_weights, or set text_prior to 'learned' or 'none'"):
        encode_caption("Pushpins")


def test_published_weights_are_openais(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def create(name: str, pretrained: str | None = None) -> torch.nn.Module:
        asked.append((name, str(pretrained)))
        return original(TINY, pretrained=None)

    original = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", create)
    encode_caption("Pushpins")
    assert asked == [("ViT-B-32", "openai")]


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
