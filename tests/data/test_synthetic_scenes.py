import numpy as np
import pytest

from anomalib_npgmf.data.synthetic import cable_pairs, damage, filled_vials, loose_screws, parts, sorting_tray
from anomalib_npgmf.data.synthetic.scatter import Outline, scatter
from anomalib_npgmf.data.synthetic.surface import Camera, Surface
from anomalib_npgmf.data.synthetic.writer import SCENES

SIZE = (96, 96)
DAMAGES = [(name, damage) for name, scene in SCENES.items() for damage in scene.damages]


@pytest.mark.parametrize(("category", "defect"), DAMAGES)
def test_structural_damage_changes_its_mask_and_nothing_far_away(category: str, defect: str) -> None:
    scene = SCENES[category]()
    layout = scene.arrange(SIZE, np.random.default_rng(5), defect)
    if defect in damage.DAMAGES:
        before = layout.surface.copy()
        part = layout.parts[0]
        mask = damage.apply(
            defect, layout.surface, layout.background, part, scene.damage_size, np.random.default_rng(6)
        )
        changed = np.zeros(mask.shape, bool)
        for old, new in zip(before.layers()[:2], layout.surface.layers()[:2], strict=True):
            difference = np.abs(new - old)
            changed |= (difference.max(axis=2) if difference.ndim == 3 else difference) > 0.02
        assert (changed & mask).sum() > 0.7 * mask.sum()
        assert mask.sum() > 0.3 * changed.sum()
        assert (mask & part).any()
    else:
        mask = layout.masks[0]
    unit = SIZE[0] * 2 / 256
    assert 12 < mask.sum() / unit**2 < 1200  # visible at 256 pixels, and local


def count(
    category: str, defect: str | None, monkeypatch: pytest.MonkeyPatch, module: object, names: list[str]
) -> list[int]:
    calls = dict.fromkeys(names, 0)
    for name in names:
        real = getattr(module, name)

        def counted(*args: object, _name: str = name, _real: object = real) -> object:
            calls[_name] += 1
            return _real(*args)  # type: ignore[operator]

        monkeypatch.setattr(module, name, counted)
    SCENES[category]().draw(SIZE, np.random.default_rng(0), defect)
    return list(calls.values())


@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        (None, [3, 4]),
        ("missing_screw", [2, 4]),
        ("extra_screw", [4, 4]),
        ("missing_nut", [3, 3]),
        ("extra_nut", [3, 5]),
    ],
)
def test_how_many(defect: str | None, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert count("loose_screws", defect, monkeypatch, parts, ["screw", "nut"]) == expected


@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        (None, [4, 3]),
        ("missing_tablet", [3, 3]),
        ("extra_tablet", [5, 3]),
        ("missing_capsule", [4, 2]),
        ("extra_capsule", [4, 4]),
    ],
)
def test_how_many_tablets(defect: str | None, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalib_npgmf.data.synthetic import tablet_dish

    assert count("tablet_dish", defect, monkeypatch, tablet_dish, ["_tablet", "_capsule"]) == expected


def plug_colours(defect: str | None, seed: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Colours of upper left, upper right, lower left, lower right plug."""
    colours: list[int] = []
    real = cable_pairs._plug

    def noted(surface: Surface, x: float, y: float, angle: float, colour: int) -> object:
        colours.append(colour)
        return real(surface, x, y, angle, colour)

    with monkeypatch.context() as patch:
        patch.setattr(cable_pairs, "_plug", noted)
        cable_pairs.CablePairs().arrange(SIZE, np.random.default_rng(seed), defect)
    return colours


def test_which_goes_with_which(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(6):
        a, b, c, d = plug_colours(None, seed, monkeypatch)
        assert a == b != c == d
        a, b, c, d = plug_colours("crossed_plugs", seed, monkeypatch)
        assert (a, b) == (d, c)
        assert a != b
        a, b, c, d = plug_colours("wrong_plug", seed, monkeypatch)
        assert (a == b) + (c == d) == 1
        assert len({a, b, c, d}) == 3  # the wrong one is neither cable's colour


def kinds_by_place(defect: str | None, seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    placed: list[int] = []

    def recorder(kind: int) -> object:
        real = sorting_tray._KINDS[kind]

        def draw(*args: object) -> object:
            placed.append(kind)
            return real(*args)  # type: ignore[arg-type]

        return draw

    with monkeypatch.context() as patch:
        patch.setattr(sorting_tray, "_KINDS", tuple(recorder(kind) for kind in range(4)))
        sorting_tray.SortingTray().arrange(SIZE, np.random.default_rng(seed), defect)
    return tuple(placed)


def test_where(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = range(12)
    normal = {kinds_by_place(None, seed, monkeypatch) for seed in seeds}
    assert normal == {(0, 1, 2, 3), (3, 2, 1, 0)}
    seen_where = [{kinds[place] for kinds in normal} for place in range(4)]
    for defect in ("swapped_parts", "wrong_part"):
        for seed in seeds:
            kinds = kinds_by_place(defect, seed, monkeypatch)
            assert kinds not in normal
            # what no local comparison can notice: each part for itself lies where it also lies in normal images
            assert all(kind in seen for kind, seen in zip(kinds, seen_where, strict=True))
            assert (len(set(kinds)) == 4) == (defect == "swapped_parts")


def test_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    real = filled_vials._vial

    def levels(defect: str | None, seed: int) -> np.ndarray:
        noted: list[float] = []

        def vial(surface: Surface, frame: object, level: float, colour: object) -> object:
            noted.append(level)
            return real(surface, frame, level, colour)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(filled_vials, "_vial", vial)
            filled_vials.FilledVials().arrange(SIZE, np.random.default_rng(seed), defect)
        return np.array(noted)

    for seed in range(8):
        assert np.ptp(levels(None, seed)) < 0.03
        for defect, sign in (("underfilled", -1), ("overfilled", 1)):
            heights = levels(defect, seed)
            odd = np.abs(heights - np.median(heights)).argmax()
            assert sign * (heights[odd] - np.median(heights)) > 0.19
            assert heights.min() > 0.2
            assert heights.max() < 0.85  # the range of normal vials


def test_masks_of_an_extra_part_mark_every_candidate() -> None:
    layout = loose_screws.LooseScrews().arrange(SIZE, np.random.default_rng(1), "extra_nut")
    (mask,) = layout.masks
    nuts = layout.parts[3:]
    assert len(nuts) == 5
    assert all(mask[nut].all() for nut in nuts)
    assert mask.sum() <= sum(nut.sum() for nut in nuts)


@pytest.mark.parametrize("part", [parts.screw, parts.nut])
def test_saturation_area_is_that_of_one_part(part: object) -> None:
    surface = Surface((256, 256), Camera())
    area = surface.to_image_mask(part(surface, 128, 128, 0.3)).sum()  # type: ignore[operator]
    nominal = {parts.screw: parts.SCREW_AREA, parts.nut: parts.NUT_AREA}[part]  # type: ignore[index]
    assert area == pytest.approx(nominal, rel=0.05)


def test_points_survive_the_camera() -> None:
    surface = Surface((80, 120), Camera(shift=(3, -5), angle=0.2, zoom=1.1))
    frame = surface.frame(100, 150, reach=20)
    row, column = np.unravel_index(np.hypot(frame.u, frame.v).argmin(), frame.u.shape)
    x, y = surface.to_scene(row + frame.window[0].start, column + frame.window[1].start)
    assert (x, y) == pytest.approx((100, 150), abs=1.2)  # a surface pixel is 1.5 units here


def test_scatter_keeps_parts_apart() -> None:
    for seed in range(20):
        places = scatter([Outline(0, 12)] * 8, 100, 80, np.random.default_rng(seed))
        points = np.array([(place.x, place.y) for place in places])
        gaps = np.linalg.norm(points[:, None] - points[None], axis=2)[~np.eye(8, dtype=bool)]
        assert gaps.min() > 24
        assert (np.abs(points - 128) <= (88, 68)).all()


def test_scatter_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="9 parts do not fit into 40 x 40"):
        scatter([Outline(0, 10)] * 9, 20, 20, np.random.default_rng(0))
