"""The curves of notebook 03 come from the modules that train, and its sliders redraw them."""

import matplotlib
import numpy as np
import torch

from lmclip import losses
from lmclip.plots import losses as figures

matplotlib.use("Agg")


def test_curve_is_the_modules_own_value_and_gradient():
    p = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    value, gradient = figures.loss_curve(losses.BCELoss(reduction="none"), 1, p)
    np.testing.assert_allclose(value, -p.log().numpy())
    np.testing.assert_allclose(gradient, p - 1)


def test_curve_belongs_to_the_class_that_was_asked_for():
    weight = torch.tensor([0.0, 1.0], dtype=torch.float64)
    loss = losses.BalancedAsymmetricLoss(weight, logit_norm="none", reduction="none")
    frequent, rare = (figures.loss_curve(loss, 1, column=column, num_classes=2)[1] for column in (0, 1))
    np.testing.assert_allclose(rare, 2 * frequent)


def test_moving_a_slider_redraws_the_figure():
    asked = []

    def draw(gamma):
        asked.append(gamma)
        return figures.draw_step(losses.FocalLoss(gamma, reduction="none"), None, ["focal"], "moved")

    slider, picture = figures.slider_panel(draw, {"gamma": (2.0, 5.0)}, {"gamma": "γ"}).children
    before = bytes(picture.value)
    slider.value = 4.0
    assert asked == [2.0, 4.0]
    assert bytes(picture.value).startswith(b"\x89PNG") and bytes(picture.value) != before
