"""Text prior: the CLIP text embedding of the category as abstract global context (paper, section III-A1)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.backbone.weights import check_state_dict, read_state_dict

TEXT_PRIORS = ("clip", "learned", "random", "none")


def caption_of(category: str) -> str:
    """Caption of a category: the name of its folder as words in title case.

    Example:
        >>> caption_of("breakfast_box")
        'Breakfast Box'
    """
    return " ".join(category.replace("_", " ").replace("-", " ").split()).title()


@torch.no_grad()
def encode_caption(caption: str, model_name: str = "ViT-B-32", weights: str | Path | None = None) -> Tensor:
    """Embed a caption with CLIP's frozen text tower.

    Args:
        caption: The text.
        model_name: Name of the CLIP architecture in open_clip.
        weights: A local ``.pth``, ``.pt`` or ``.safetensors`` file of the whole CLIP or of its text tower; ``None``
            takes OpenAI's published weights from open_clip's hub or cache; ``"random"`` leaves the tower untrained.

    Returns:
        The embedding of unit length, [d].

    Raises:
        ValueError: If the file does not fit, naming the first keys.
        RuntimeError: If the hub cannot be reached.
    """
    import open_clip  # imported here, since only embedding a caption needs it

    if model_name not in open_clip.list_models():
        msg = f"open_clip has no model {model_name!r}; see open_clip.list_models()."
        raise ValueError(msg)
    if weights is None:
        try:
            model = open_clip.create_model(model_name, pretrained="openai")
        except Exception as error:
            msg = (
                f"CLIP's weights could not be fetched ({type(error).__name__}); give a local file in clip_weights, or "
                "set text_prior to 'learned' or 'none'."
            )
            raise RuntimeError(msg) from error
    else:
        model = open_clip.create_model(model_name, pretrained=None)
        if weights != "random":
            state = read_state_dict(weights)
            text = {
                name: value
                for name, value in model.state_dict().items()
                if not name.startswith("visual.") and name not in {"logit_scale", "logit_bias", "attn_mask"}
            }
            check_state_dict(state, text, str(weights), f"the text tower of CLIP {model_name}")
            model.load_state_dict({name: state[name] for name in text}, strict=False)
    model.eval()
    embedding = model.encode_text(open_clip.get_tokenizer(model_name)([caption]))
    return F.normalize(embedding[0].float(), dim=0)


class TextPrior(nn.Module):
    """Global context g = FC(t) of a fixed text embedding t.

    The category of a model never changes, so t is computed once and stored as a buffer: loading a checkpoint or an
    exported model does not need CLIP.

    Args:
        kind: ``"clip"`` expects the embedding through `set_embedding`; ``"random"`` is a fixed random unit vector and
            ``"learned"`` a trained vector (the two controls).
        dim: Channels of the context.
        grid: Side s0 of the context's grid.
        embedding_dim: Length of t; 512 for CLIP ViT-B/32.

    Example:
        >>> TextPrior("learned", dim=8, grid=2)().shape
        torch.Size([1, 8, 2, 2])
    """

    embedding: Tensor

    def __init__(self, kind: str, dim: int, grid: int = 1, embedding_dim: int = 512) -> None:
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
