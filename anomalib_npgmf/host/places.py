"""Where the picture of an image goes: images of different folders never share one place."""

from pathlib import Path
from typing import Any

from anomalib.utils.path import generate_output_filename


def picture_path(image: str | Path, folder: Path, datamodule: Any = None) -> Path:
    """Path of the picture of an image; its folder is made.

    Args:
        image: Path of the image.
        folder: Folder of all pictures.
        datamodule: The anomalib data module that it comes from. Below a folder of its name anomalib's rule applies,
            else the path counts from the data module's root.

    Returns:
        The path. For an image that comes from no data module it repeats the image's, from the working directory or
        from the file system's root.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> picture_path("line2/new/1.png", folder).relative_to(folder).as_posix()
        'line2/new/1.png'
    """
    image = Path(image)
    name, category = getattr(datamodule, "name", None), getattr(datamodule, "category", None)
    if name and name.lower() in (part.lower() for part in image.parts):
        return Path(generate_output_filename(image, folder, name, category))
    whole = image.resolve()
    roots = (getattr(datamodule, "root", None), Path.cwd())
    root = next((Path(root).resolve() for root in roots if root and whole.is_relative_to(Path(root).resolve())), None)
    path = folder / whole.relative_to(root or whole.anchor)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
