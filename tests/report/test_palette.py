"""Activations' colours: apart for every reader, on light and on dark, and from the paper."""

import itertools

import numpy as np
import pytest

from nonlin.functions import names
from nonlin.report.palette import OWN, SLOTS, hidden, middle, paint, slot_of

DEFAULT = ("relu", "gelu", "silu", "swiglu", "geglu", "relu_squared")
PAPER = ("#ffffff", "#111418")
# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
EYES = {
    "usual": np.eye(3),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]])}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041]])


def linear(colour):
    values = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colour, eye):
    t = XYZ @ np.clip(EYES[eye] @ linear(colour), 0, 1) / (XYZ @ np.ones(3))
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one, two):
    """The colour difference of CIE 142:2001 between two colours in L*a*b*."""
    (l1, a1, b1), (l2, a2, b2) = one, two
    chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(chroma**7 / (chroma**7 + 25**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    dl, dc, dh = l2 - l1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    lm, cm = (l1 + l2) / 2, (c1 + c2) / 2
    hm = h1 + h2 if c1 * c2 == 0 else (h1 + turn / 2) % 360
    t = (1 - 0.17 * np.cos(np.radians(hm - 30)) + 0.24 * np.cos(np.radians(2 * hm))
         + 0.32 * np.cos(np.radians(3 * hm + 6)) - 0.20 * np.cos(np.radians(4 * hm - 63)))
    sl = 1 + 0.015 * (lm - 50) ** 2 / np.sqrt(20 + (lm - 50) ** 2)
    sc, sh = 1 + 0.045 * cm, 1 + 0.015 * cm * t
    rt = -2 * np.sqrt(cm**7 / (cm**7 + 25**7)) * np.sin(np.radians(60 * np.exp(-((hm - 275) / 25) ** 2)))
    return float(np.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dh / sh) ** 2 + rt * dc / sc * dh / sh))


@pytest.mark.parametrize(("one", "two", "want"), [  # from Sharma, Wu and Dalal (2005), table 1
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195), ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377)])
def test_the_measure_is_the_published_one(one, two, want):
    assert ciede2000(one, two) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("dark", [False, True])
def test_colours_keep_apart(eye, dark):
    def least(slots):
        return min((ciede2000(lab(SLOTS[a][dark], eye), lab(SLOTS[b][dark], eye)), a, b)
                   for a, b in itertools.combinations(slots, 2))

    assert least([OWN[name] for name in DEFAULT])[0] > 15
    assert least(range(len(SLOTS)))[0] > 8


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out_from_the_paper(dark):
    paper = XYZ[1] @ linear(PAPER[dark])
    for pair in SLOTS:
        low, high = sorted((paper, XYZ[1] @ linear(pair[dark])))
        assert (high + 0.05) / (low + 0.05) > 3, pair  # WCAG, for graphics


def test_in_a_terminal_they_are_seen_on_both():
    for name, made in paint(list(OWN)).items():
        lightness = lab(middle(made), "usual")[0]
        assert 25 < lightness < 85, name


def test_a_colour_belongs_to_an_activation_whatever_stands_beside():
    assert len(set(OWN.values())) == len(OWN) and set(OWN) <= set(names())
    for shown in (["gelu", "mine"], ["other", "swiglu", "mine", "gelu"], names()):
        for name, made in paint(shown).items():
            assert name not in OWN or made.slot == OWN[name]
    for shown in (["mine", "yours", *DEFAULT], ["relu_squared", "x", "y", "z", "u"]):
        assert len({made.slot for made in paint(shown).values()}) == len(shown)
    many = paint([*OWN, *(f"f{i}" for i in range(40))]).values()
    for what in ("slot", "light", "dark"):
        assert len({getattr(made, what) for made in many}) == len(OWN) + 40  # none shares another's
    for made in many:
        for dark, colour in enumerate((made.light, made.dark)):
            low, high = sorted((XYZ[1] @ linear(PAPER[dark]), XYZ[1] @ linear(colour)))
            assert (high + 0.05) / (low + 0.05) > 3 and slot_of(made.light) == made.slot


def test_lines_that_lie_on_others_are_found():
    rng = np.random.default_rng(1)
    base = rng.normal(size=50).cumsum()
    lines = {"a": base, "b": base + 1e-9, "c": base + 5, "d": [*base[:40], *[9.0] * 10], "none": [None] * 50}
    assert hidden({k: list(v) for k, v in lines.items()}) == {"b", "d"}
    assert hidden({}) == set() and hidden({"a": [1.0], "b": [None]}) == set()
