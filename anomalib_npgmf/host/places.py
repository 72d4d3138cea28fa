"""Where the visualization of an image is saved: images of different folders never get the same file."""

from pathlib import Path
from typing import Any

from anomalib.utils.path import generate_output_filename


def picture_path(image: str | Path, folder: Path, datamodule: Any = None) -> Path:
    """Path of the visualization of an image; its folder is created.

    Args:
        image: Path of the image.
        folder: Folder of all visualizations.
        datamodule: The anomalib data module that it comes from. Below a folder of its name anomalib's rule applies,
            elsewhere the path is relative to the data module's root.

    Returns:
        A path in ``folder``. For an image outside a data module it repeats the image's path relative to the working
        directory, or else to the file system's root.

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
