"""Draw the architecture of the README: ``python studies/architecture.py`` writes docs/images/architecture.png."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUTPUT = Path(__file__).parents[1] / "docs" / "images" / "architecture.png"
GREY, BLUE, ORANGE, GREEN, VIOLET = "#e9edf1", "#d5e5f7", "#fbe3c8", "#dcefd8", "#e8def4"
EDGES = {GREY: "#7d8a97", BLUE: "#3b78b8", ORANGE: "#c9812c", GREEN: "#4d9148", VIOLET: "#7f5bb0"}
LINE = "#4a5560"
WIDTH, HEIGHT, BOTTOM = 1200, 560, 40  # pixels

# name: centre, size, colour, text
BOXES: dict[str, tuple[float, float, float, float, str, str]] = {
    "image": (50, 350, 76, 60, GREY, "image"),
    "resize": (150, 350, 84, 60, GREY, "resize,\nnormalise"),
    "encoder": (278, 475, 116, 66, BLUE, "frozen encoder:\nfeatures of\nseveral levels"),
    "prior": (440, 545, 152, 36, BLUE, "text prior (CLIP)"),
    "embedding": (440, 484, 152, 50, BLUE, "one-class embedding\n(narrow bottleneck)"),
    "codebooks": (440, 418, 152, 50, BLUE, "codebooks: the nearest\nnormal code"),
    "decoder": (612, 484, 136, 70, BLUE, "decoder, LeWin\nfusion with prior\nand codes"),
    "rebuilt": (776, 535, 136, 46, BLUE, "rebuilt image:\n«normal version»"),
    "logical": (776, 445, 136, 66, BLUE, "logical map, eq. 7:\nrebuilt features\nagainst real ones"),
    "network": (278, 265, 116, 66, ORANGE, "frozen network\n(the same one\nif sizes agree)"),
    "patches": (440, 265, 152, 50, ORANGE, "patch features"),
    "bank": (612, 265, 136, 66, ORANGE, "memory bank:\ncoreset of\nnormal patches"),
    "structural": (776, 265, 136, 66, ORANGE, "structural map,\neq. 10: distance to\nnearest neighbour"),
    "codes": (440, 90, 152, 50, VIOLET, "soft codes of patches"),
    "variation": (612, 90, 136, 66, VIOLET, "how much of each,\nin all and by cells,\nagainst normal"),
    "composition": (776, 90, 136, 66, VIOLET, "composition map:\nwhere the\nsurplus lies"),
    "calibration": (942, 355, 132, 96, GREEN, "calibrate, smooth,\nsum 1 : 3 (eq. 11)\nor maximum"),
    "maximum": (942, 170, 132, 66, GREEN, "calibration,\nmaximum (if the\nread-out is on)"),
    "score": (1110, 262, 132, 80, GREEN, "merged map;\nits maximum is\nthe score; label by\nthe threshold"),
}
ARROWS = (
    "image resize, resize encoder, resize network, encoder embedding, encoder codebooks, embedding decoder, "
    "codebooks decoder, prior decoder, decoder rebuilt, decoder logical, network patches, network codes, patches bank, "
    "bank structural, codes variation, variation composition, logical calibration, structural calibration, "
    "composition maximum, maximum score"
)
HEADINGS = (
    (220, 583, BLUE, "logical branch: what is in the wrong place, of the wrong kind or missing"),
    (220, 318, ORANGE, "structural branch: damage"),
    (364, 146, VIOLET, "composition read-out (optional): how many, which with which"),
)


def main() -> None:
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(BOTTOM, BOTTOM + HEIGHT))
    axes.axis("off")
    for x, y, colour, text in HEADINGS:
        axes.text(x, y, text, fontsize=9.5, color=EDGES[colour], weight="bold", va="center")
    points = [((942, 307), (942, 203)), ((776, 375), (776, 412))]
    for arrow in ARROWS.split(", "):  # from the right side of a box to the left side of another
        (x0, y0, width0, *_), (x1, y1, width1, *_) = (BOXES[name] for name in arrow.split())
        points.append(((x0 + width0 / 2, y0), (x1 - width1 / 2, y1)))
    axes.plot([278, 278, 776], [442, 375, 375], color=LINE, linewidth=1.1)  # the real features, past the decoder
    for start, end in points:
        style = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.1, "color": LINE}
        axes.add_patch(FancyArrowPatch(start, end, shrinkA=1, shrinkB=1, **style))
    for x, y, width, height, colour, text in BOXES.values():
        corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=6"
        edge = {"edgecolor": EDGES[colour], "linewidth": 1.2}
        axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, **edge))
        axes.text(x, y, text, ha="center", va="center", fontsize=8.5, linespacing=1.25)
    figure.savefig(OUTPUT, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
