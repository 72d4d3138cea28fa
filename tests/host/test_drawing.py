"""Pictures side by side."""

import numpy as np

from anomalib_npgmf.host.drawing import HEADER, MARGIN, panels


def test_names_and_titles_wider_than_the_pictures_are_not_cut() -> None:
    """Photographs of bottles are narrow: the columns widen to their names, the picture to its title."""
    narrow = {"ground truth": np.zeros((40, 20, 3), np.uint8), "merged": np.full((40, 20, 3), 9, np.uint8)}
    drawn = panels(narrow, "a title that is longer than both columns of such narrow pictures together")
    assert (drawn[:, -MARGIN:] == 255).all()  # no text reaches the edge
    names = drawn[HEADER : 2 * HEADER].min(axis=(0, 2)) < 128  # columns of pixels with ink
    second = int(np.flatnonzero((drawn[2 * HEADER :] == 9).all(axis=2).any(axis=0))[0])
    assert not names[second - MARGIN : second].any()  # a gap before the second name
    assert names[second : second + 30].any()
    wide = panels({name: np.zeros((40, 200, 3), np.uint8) for name in narrow}, "short")
    assert wide.shape[1] == 2 * (200 + MARGIN) + MARGIN
