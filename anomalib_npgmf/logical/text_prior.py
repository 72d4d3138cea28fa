"""Text prior: the CLIP text embedding of the category as abstract global context (paper, section III-A2)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.backbone.weights import check_state_dict, read_state_dict

TEXT_PRIORS = ("clip", "learned", "random", "none")
CLIP_MODEL = "ViT-B-32-quickgelu"  # open_clip's name of OpenAI's ViT-B/32, which was trained with QuickGELU
TEXT_DIM = 512  # length of its text embedding


def caption_of(category: str) -> str:
    """Caption of a category: the name of its folder as words in title case.

    Example:
        >>> caption_of("breakfast_box")
        'Breakfast Box'
    """
    return " ".join(category.replace("_", " ").replace("-", " ").split()).title()


def captions_of(subject: str, templates: Sequence[str]) -> list[str]:
    """Captions of what the images show: each template with ``{}`` replaced.

    Example:
        >>> captions_of("Pushpins", ["{}", "a photo of {}"])
        ['Pushpins', 'a photo of Pushpins']
    """
    return [template.replace("{}", subject) for template in templates]


def text_dim_of(model_name: str) -> int:
    """Length of the text embedding of a CLIP architecture.

    Args:
        model_name: Its name in open_clip, which is imported unless it is the default.

    Raises:
        ValueError: If open_clip does not know the architecture.

    Example:
        >>> text_dim_of("ViT-B-32-quickgelu")
        512
    """
    return TEXT_DIM if model_name == CLIP_MODEL else int(_clip_config(model_name)["embed_dim"])


def _clip_config(model_name: str) -> dict[str, Any]:
    import open_clip  # imported here: a trained model of the default architecture works without it

    config: dict[str, Any] | None = open_clip.get_model_config(model_name)
    if config is None:
        msg = f"open_clip has no model {model_name!r}; see open_clip.list_models()."
        raise ValueError(msg)
    return config


@torch.no_grad()
def encode_caption(*captions: str, model_name: str = CLIP_MODEL, weights: str | Path | None = None) -> Tensor:
    """Embed a caption, or several, with CLIP's frozen text tower.

    QuickGELU is used where the weights were trained with it, as OpenAI's were. open_clip knows this of published
    weights; a local file needs an architecture named ``...-quickgelu``, unless it is OpenAI's original file.

    Args:
        captions: The text or texts.
        model_name: Name of the CLIP architecture in open_clip.
        weights: A local ``.pth``, ``.pt`` or ``.safetensors`` file of the whole CLIP or of its text tower; the name of
            weights that open_clip publishes for the architecture; ``None`` for ``openai``, fetched from open_clip's hub
            or cache; ``"random"`` leaves the tower untrained.

    Returns:
        The embedding of unit length, [d]; of several captions the mean of theirs, brought to unit length.

    Raises:
        FileNotFoundError: If the weights are neither published nor a file.
        ValueError: If the file does not fit, naming the first keys, or the architecture is unknown.
        RuntimeError: If the hub cannot be reached.
    """
    import open_clip

    _clip_config(model_name)
    published = weights is None or weights in open_clip.list_pretrained_tags_by_model(model_name)
    if published:
        tag = str(weights or "openai")
        try:
            quick = tag == "openai" or tag in open_clip.list_pretrained_tags_by_model(f"{model_name}-quickgelu")
            model = open_clip.create_model(model_name, pretrained=tag, force_quick_gelu=quick)
        except Exception as error:
            msg = (
                f"CLIP's weights could not be fetched ({type(error).__name__}); give a local file in clip_weights, or "
                "set text_prior to 'learned' or 'none'."
            )
            raise RuntimeError(msg) from error
    else:
        state = None if weights == "random" else read_state_dict(str(weights))
        # OpenAI's own files hold the input's size beside the weights.
        quick = state is not None and "input_resolution" in state
        model = open_clip.create_model(model_name, pretrained=None, force_quick_gelu=quick)
        if state is not None:
            _load_text_tower(model, state, str(weights), model_name)
    model.eval()
    tokens = open_clip.get_tokenizer(model_name)(list(captions))
    return F.normalize(F.normalize(model.encode_text(tokens).float(), dim=-1).mean(dim=0), dim=0)


def _load_text_tower(model: nn.Module, state: Mapping[str, Tensor], source: str, model_name: str) -> None:
    text = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("visual.") and name not in {"logit_scale", "logit_bias", "attn_mask"}
    }
    check_state_dict(state, text, source, f"the text tower of CLIP {model_name}")
    model.load_state_dict({name: state[name] for name in text}, strict=False)


class TextPrior(nn.Module):
    """Global context g = FC(t) of an embedding t: a text embedding, a learned vector or a random one.

    A fitted model has one category, so t is computed once per fit and stored: loading a checkpoint or an exported model
    does not need CLIP.

    Args:
        kind: ``"clip"`` expects the embedding through `set_embedding`; ``"learned"`` is a trained
            vector, which needs no CLIP (preset ``small``), ``"random"`` a fixed random unit vector, for comparison.
        dim: Channels of the context.
        grid: Side s0 of the context's grid.
        embedding_dim: Length of t, see `text_dim_of`.

    Example:
        >>> TextPrior("learned", dim=8, grid=2)().shape
        torch.Size([1, 8, 2, 2])
    """

    embedding: Tensor

    def __init__(self, kind: str, dim: int, grid: int = 1, embedding_dim: int = TEXT_DIM) -> None:
        super().__init__()
        self.kind = kind
        self.shape = (dim, grid, grid)
        start = F.normalize(torch.randn(embedding_dim), dim=0)
        if kind == "learned":
            self.embedding = nn.Parameter(start)
        else:
            self.register_buffer("embedding", start if kind == "random" else torch.zeros(embedding_dim))
        self.linear = nn.Linear(embedding_dim, dim * grid * grid)

    def set_embedding(self, embedding: Tensor) -> None:
        """Set t.

        Args:
            embedding: CLIP text embedding, [d].

        Raises:
            ValueError: If its length is not the one that the linear layer expects.
        """
        if embedding.shape != self.embedding.shape:
            msg = f"The text embedding has {tuple(embedding.shape)} values, the model takes {len(self.embedding)}."
            raise ValueError(msg)
        with torch.no_grad():
            self.embedding.copy_(embedding)

    def forward(self, embedding: Tensor | None = None) -> Tensor:
        """Global context.

        Args:
            embedding: Embeddings used instead of t, one per image, [B, d], for a model of several categories.

        Returns:
            [1, d_T, s0, s0], or with ``embedding`` [B, d_T, s0, s0].
        """
        out: Tensor = self.linear(self.embedding if embedding is None else embedding).reshape(-1, *self.shape)
        return out
