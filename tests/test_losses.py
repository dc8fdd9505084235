"""Losses against the release's golden numbers, slow loops, numerical gradients, and the inputs that break losses."""

import json
import math

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmclip import losses
from lmclip.errors import LMCLIPError

COUNTS = torch.tensor([60.0, 25.0, 9.0, 3.0, 1.0])
WEIGHT = torch.tensor([0.02, 0.1, 0.2, 0.5, 1.0], dtype=torch.float64)


# --- slow loops, one element at a time, straight from each formula ------------------------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def shifted(p, m):
    return min(1 - p + m, 1)


def slow_bce(x, y, c, X, Y):
    p = sigmoid(x)
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


def slow_focal(x, y, c, X, Y, gamma=2.0):
    pt = sigmoid(x) if y == 1 else 1 - sigmoid(x)
    return -((1 - pt) ** gamma) * math.log(pt)


def slow_class_balanced_focal(x, y, c, X, Y):
    effective = [(1 - 0.999) / (1 - 0.999 ** float(n)) for n in COUNTS]
    return slow_focal(x, y, c, X, Y) * effective[c] * len(effective) / sum(effective)


def slow_asl(x, y, c, X, Y, gamma_neg=4.0, gamma_pos=1.0, m=0.05):
    p, q = sigmoid(x), shifted(sigmoid(x), m)
    return -y * (1 - p) ** gamma_pos * math.log(p) - (1 - y) * (1 - q) ** gamma_neg * math.log(q)


def slow_db(x, y, c, X, Y, gamma=0.0):
    num_images, alpha, beta, mu, kappa, lam = 70, 0.1, 10.0, 0.3, 0.05, 5.0
    n = [float(v) for v in COUNTS]
    repeat = sum(1 / n[k] for k, present in enumerate(Y) if present)
    weight = alpha + (1.0 if repeat == 0 else sigmoid(beta * (1 / n[c] / repeat - mu)))
    z = x - kappa * math.log(num_images / n[c] - 1)
    if y == 1:
        return -weight * (1 - sigmoid(z)) ** gamma * math.log(sigmoid(z))
    return -weight / lam * (1 - sigmoid(-lam * z)) ** gamma * math.log(sigmoid(-lam * z))


def slow_db_focal(x, y, c, X, Y):
    return slow_db(x, y, c, X, Y, gamma=2.0)


def slow_bal(x, y, c, X, Y, gamma_neg=9.8, gamma_pos=0.0, m=0.05, eps=0.1, smooth_negatives=False, scale=None):
    p = sigmoid(x / (max(max(row) for row in X) if scale is None else scale))
    q = shifted(p, m)
    smooth = (1 - eps) * y + eps / len(Y)
    other = 1 - smooth if smooth_negatives else 1 - y
    base = max(1 - p * smooth - q * other, 0.0)
    exponent = gamma_pos * smooth + gamma_neg * other
    return -((1 + float(WEIGHT[c])) * smooth * math.log(p) + other * math.log(q)) * base**exponent


def slow_bal_clean(x, y, c, X, Y):
    return slow_bal(x, y, c, X, Y, gamma_pos=0.5, smooth_negatives=True)


def slow_bal_unnormalised(x, y, c, X, Y):
    return slow_bal(x, y, c, X, Y, scale=1.0)


def slow_plotted(x, y, c, X, Y, gamma_neg=9.8, gamma_pos=1.0, m=0.05, eps=0.1):
    p = sigmoid(x / max(max(row) for row in X))
    q = shifted(p, m)
    smooth = (1 - eps) * y + eps / len(Y)
    positive = float(WEIGHT[c]) * smooth * math.log(p) * (1 - p * smooth) ** (gamma_pos * smooth)
    return -positive - (1 - y) * math.log(q) * (1 - q * (1 - y)) ** (gamma_neg * (1 - y))


# name: (constructor with a reduction, slow loop, does the loss equal the function whose gradient it returns?)
LOSSES = {
    "bce": (losses.BCELoss, slow_bce, True),
    "focal": (losses.FocalLoss, slow_focal, True),
    "class-balanced focal": (
        lambda reduction="mean": losses.FocalLoss(
            class_weight=losses.class_balanced_weights(COUNTS, 0.999), reduction=reduction
        ),
        slow_class_balanced_focal,
        True,
    ),
    "asl": (losses.AsymmetricLoss, slow_asl, True),
    "asl without focusing": (
        lambda reduction="mean": losses.AsymmetricLoss(0.0, 0.0, clip=0.3, reduction=reduction),
        lambda *element: slow_asl(*element, gamma_neg=0.0, gamma_pos=0.0, m=0.3),
        True,
    ),
    "asl detached": (
        lambda reduction="mean": losses.AsymmetricLoss(reduction=reduction, detach_focusing=True),
        slow_asl,
        False,
    ),
    "db": (
        lambda reduction="mean": losses.DistributionBalancedLoss(COUNTS, 70, focal=False, reduction=reduction),
        slow_db,
        True,
    ),
    "db-focal": (
        lambda reduction="mean": losses.DistributionBalancedLoss(COUNTS, 70, reduction=reduction),
        slow_db_focal,
        True,
    ),
    "bal": (lambda reduction="mean": losses.BalancedAsymmetricLoss(WEIGHT, reduction=reduction), slow_bal, True),
    "bal clean": (
        lambda reduction="mean": losses.BalancedAsymmetricLoss(
            WEIGHT, gamma_pos=0.5, smooth_negatives=True, reduction=reduction
        ),
        slow_bal_clean,
        True,
    ),
    "bal unnormalised": (
        lambda reduction="mean": losses.BalancedAsymmetricLoss(WEIGHT, logit_norm="none", reduction=reduction),
        slow_bal_unnormalised,
        True,
    ),
    "plotted bal": (
        lambda reduction="mean": losses.PlottedBalancedAsymmetricLoss(WEIGHT, gamma_pos=1.0, reduction=reduction),
        slow_plotted,
        False,
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def example(batch=6, seed=0, dtype=torch.float64, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(batch, 5, generator=generator, dtype=torch.float64) * spread).to(dtype)
    targets = (torch.rand(batch, 5, generator=generator) < 0.4).to(dtype)
    return logits, targets


def slow_matrix(slow, logits, targets):
    X, Y = logits.double().tolist(), targets.tolist()
    terms = [[slow(X[i][c], Y[i][c], c, X, Y[i]) for c in range(5)] for i in range(len(X))]
    return torch.tensor(terms, dtype=torch.float64)


def value_and_grad(loss, logits, targets):
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, targets)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


# --- golden numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("kind", ["bal", "asl"])
def test_loss_and_gradient_equal_the_release(golden, case, kind):
    numbers = np.load(golden / "losses.npz")
    setting = json.loads(str(numbers["meta"]))[case]
    logits, targets = torch.tensor(numbers[f"{case}.logits"]), torch.tensor(numbers[f"{case}.targets"])
    shared = {key: setting[key] for key in ("gamma_neg", "gamma_pos", "clip")}
    if kind == "asl":
        loss = losses.AsymmetricLoss(**shared)
    else:
        weight = torch.tensor(numbers[f"{case}.class_weight"]) if setting["weighted"] else None
        loss = losses.BalancedAsymmetricLoss(weight, **shared, label_smoothing=setting["label_smoothing"])
    value, grad = value_and_grad(loss, logits, targets)
    assert value.dtype == torch.float64
    assert abs(value.item() - float(numbers[f"{case}.{kind}.loss"])) < 1e-10
    assert (grad - torch.tensor(numbers[f"{case}.{kind}.grad"])).abs().max() < 1e-10


def test_twenty_training_steps_equal_the_release(golden_clip):
    model, numbers = golden_clip
    hyper, names = json.loads(str(numbers["hyper"])), json.loads(str(numbers["names"]))
    bal = losses.BalancedAsymmetricLoss(
        torch.tensor(numbers["class_weight"]),
        **{key: hyper[key] for key in ("gamma_neg", "gamma_pos", "clip", "label_smoothing")},
    )
    loss = losses.LMCLIPLoss(bal, hyper["lambda_bal"])
    adamw = {key: hyper[key] for key in ("lr", "betas", "eps", "weight_decay")}
    optimiser = torch.optim.AdamW(model.parameters(), **adamw)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, hyper["epochs"])
    label_tokens = open_clip.tokenize([f"a photo of a {name}" for name in names])
    came_out, smallest_maximum = [], math.inf
    for step, (images, targets) in enumerate(zip(numbers["images"], numbers["targets"], strict=True)):
        images, targets = torch.tensor(images).float(), torch.tensor(targets).float()
        captions = ["a photo of a " + ", ".join(names[c] for c in row.nonzero().flatten()) for row in targets]
        image = model.encode_image(images, normalize=True)
        caption = model.encode_text(open_clip.tokenize(captions), normalize=True)
        label = model.encode_text(label_tokens, normalize=True)
        parts = loss(image, caption, label, model.logit_scale.exp(), targets)
        smallest_maximum = min(smallest_maximum, (image @ label.T).max().item())
        optimiser.zero_grad()
        parts["loss"].backward()
        optimiser.step()
        came_out.append(parts["loss"].item())
        if (step + 1) % hyper["steps_per_epoch"] == 0:
            schedule.step()
    with torch.no_grad():  # the golden logits are those of the first batch, after the last step
        image = model.encode_image(torch.tensor(numbers["images"][0]).float(), normalize=True)
        final = model.logit_scale.exp() * image @ model.encode_text(label_tokens, normalize=True).T
    assert smallest_maximum < 0, "the golden run crosses a negative batch maximum, or it tests less than it says"
    np.testing.assert_allclose(came_out, numbers["losses"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(final, numbers["final_logits"], atol=1e-4, rtol=0)


# --- formulas -----------------------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_terms_equal_the_slow_loop(name, dtype, tolerance):
    make, slow, _ = LOSSES[name]
    logits, targets = example(dtype=dtype)
    targets[2] = 0  # an image without any label, as COCO has
    terms = make(reduction="none")(logits, targets)
    assert terms.shape == logits.shape and terms.dtype == dtype
    torch.testing.assert_close(terms.double(), slow_matrix(slow, logits, targets), rtol=tolerance, atol=tolerance)


@every_loss
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10_000), st.floats(0.1, 4.0))
def test_terms_equal_the_slow_loop_for_any_batch(name, batch, seed, spread):
    make, slow, _ = LOSSES[name]
    logits, targets = example(batch, seed, spread=spread)
    expected = slow_matrix(slow, logits, targets)
    # the loop's own 1 − p loses digits at large logits, hence 1e-6 and not 1e-12
    torch.testing.assert_close(make(reduction="none")(logits, targets), expected, rtol=1e-6, atol=1e-10)


@every_loss
def test_reductions_agree(name):
    make, *_ = LOSSES[name]
    logits, targets = example()
    terms = make(reduction="none")(logits, targets)
    torch.testing.assert_close(make()(logits, targets), terms.mean())
    torch.testing.assert_close(make(reduction="sum")(logits, targets), terms.sum())


@pytest.mark.parametrize("name", [name for name, (*_, exact) in LOSSES.items() if exact])
def test_gradient_is_that_of_the_value(name):
    make, *_ = LOSSES[name]
    logits, targets = example(batch=4, seed=3)
    loss = make(reduction="none")
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits.requires_grad_())


@pytest.mark.parametrize("name", [name for name, (*_, exact) in LOSSES.items() if not exact])
def test_detached_focusing_changes_the_gradient(name):
    make, *_ = LOSSES[name]
    logits, targets = example(batch=4, seed=3)
    loss = make(reduction="none")
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda x: loss(x, targets), logits.requires_grad_())


def test_contrastive_loss_equals_the_slow_loop_and_open_clip():
    open_clip = pytest.importorskip("open_clip")
    image, text = unit_rows(5, 8, seed=1), unit_rows(5, 8, seed=2)
    logits = (14.0 * image @ text.T).tolist()
    total = 0.0
    for i in range(5):
        total -= logits[i][i] - math.log(sum(math.exp(v) for v in logits[i]))
        total -= logits[i][i] - math.log(sum(math.exp(row[i]) for row in logits))
    ours = losses.ContrastiveLoss()(image, text, 14.0)
    assert abs(ours.item() - total / 10) < 1e-12
    torch.testing.assert_close(ours, open_clip.ClipLoss()(image, text, torch.tensor(14.0, dtype=torch.float64)))
    inputs = (image.requires_grad_(), text.requires_grad_(), torch.tensor(14.0, dtype=torch.float64).requires_grad_())
    assert torch.autograd.gradcheck(losses.ContrastiveLoss(), inputs)


def test_lmclip_loss_is_the_sum_of_its_parts():
    image, caption, label = unit_rows(6, 8, seed=1), unit_rows(6, 8, seed=2), unit_rows(5, 8, seed=3)
    _, targets = example()
    bal = losses.BalancedAsymmetricLoss(WEIGHT)
    parts = losses.LMCLIPLoss(bal, 0.4)(image, caption, label, 20.0, targets)
    torch.testing.assert_close(parts["contrastive_loss"], losses.ContrastiveLoss()(image, caption, 20.0))
    torch.testing.assert_close(parts["bal_loss"], bal(20.0 * image @ label.T, targets))
    torch.testing.assert_close(parts["loss"], parts["contrastive_loss"] + 0.4 * parts["bal_loss"])


def unit_rows(rows, width, seed):
    features = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(features, dim=1)


# --- what the notebook says about BAL -----------------------------------------------------------------------------


def test_batch_max_hides_the_temperature_from_bal():
    image, label = unit_rows(6, 8, seed=1), unit_rows(5, 8, seed=3)
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    targets = example()[1]
    grads = [
        torch.autograd.grad(
            losses.BalancedAsymmetricLoss(WEIGHT, logit_norm=norm)(scale * image @ label.T, targets), scale
        )[0]
        for norm in ("batch_max", "none")
    ]
    assert abs(grads[0]) < 1e-15 < 1e-6 < abs(grads[1])


def test_gamma_zero_reduces_to_the_simpler_loss():
    logits, targets = example()
    bce = losses.BCELoss()(logits, targets)
    torch.testing.assert_close(losses.FocalLoss(gamma=0.0)(logits, targets), bce)
    torch.testing.assert_close(losses.AsymmetricLoss(0.0, 0.0, 0.0)(logits, targets), bce)
    bal = losses.BalancedAsymmetricLoss(gamma_neg=4.0, gamma_pos=1.0, label_smoothing=0.0, logit_norm="none")
    torch.testing.assert_close(bal(logits, targets), losses.AsymmetricLoss()(logits, targets))


@pytest.mark.parametrize("logits", [torch.zeros(3, 5), torch.tensor([[0.0, -1, -2, -3, -4], [-9, -9, -9, -9, -9]])])
def test_zero_batch_maximum_leaves_the_logits_unnormalised(logits):
    targets = torch.eye(5)[: len(logits)]
    value, grad = value_and_grad(losses.BalancedAsymmetricLoss(WEIGHT), logits, targets)
    unnormalised = value_and_grad(losses.BalancedAsymmetricLoss(WEIGHT, logit_norm="none"), logits, targets)
    torch.testing.assert_close((value, grad), unnormalised)
    assert grad.abs().max() > 0


def test_class_balanced_weights_follow_their_formula_and_refuse_an_empty_class():
    expected = [(1 - 0.9) / (1 - 0.9**n) for n in (100, 10, 1)]
    expected = torch.tensor(expected, dtype=torch.float64) * 3 / sum(expected)
    torch.testing.assert_close(losses.class_balanced_weights([100, 10, 1], 0.9), expected)
    with pytest.raises(LMCLIPError, match="Class 1"):
        losses.class_balanced_weights([5, 0, 3])


# --- degenerate input, for every loss -----------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["mixed", "all +100", "all -100", "one at +100", "random"])
@pytest.mark.parametrize("labels", ["some", "none", "all"])
def test_extreme_logits_keep_a_finite_value_and_gradient(name, dtype, pattern, labels):
    logits, targets = example(batch=4, dtype=dtype, spread=30.0)
    if pattern == "mixed":
        logits = torch.where(logits > 0, 100.0, -100.0).to(dtype)
    elif pattern.startswith("all"):
        logits = torch.full_like(logits, float(pattern.split()[1]))
    elif pattern.startswith("one"):
        logits = torch.full_like(logits, -100.0)
        logits[0, 0] = 100.0
    targets = {"some": targets, "none": torch.zeros_like(targets), "all": torch.ones_like(targets)}[labels]
    value, grad = value_and_grad(LOSSES[name][0](), logits, targets)
    assert torch.isfinite(value) and torch.isfinite(grad).all()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and grad.dtype == dtype


@every_loss
def test_low_precision_input_is_computed_in_float32(name):
    logits, targets = example(dtype=torch.bfloat16)
    make, slow, _ = LOSSES[name]
    terms = make(reduction="none")(logits, targets)
    torch.testing.assert_close(terms.double(), slow_matrix(slow, logits, targets), rtol=1e-5, atol=1e-6)


@every_loss
def test_batch_of_one(name):
    make, slow, _ = LOSSES[name]
    logits, targets = example(batch=1, seed=5)
    value, grad = value_and_grad(make(), logits, targets)
    torch.testing.assert_close(value, slow_matrix(slow, logits, targets).mean())
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    "loss",
    [
        losses.BCELoss(),
        losses.FocalLoss(),
        losses.FocalLoss(class_weight=losses.class_balanced_weights([3])),
        losses.AsymmetricLoss(),
        losses.DistributionBalancedLoss([3], 3, focal=False),
        losses.DistributionBalancedLoss([3], 7),
        losses.BalancedAsymmetricLoss(torch.ones(1)),
        losses.PlottedBalancedAsymmetricLoss(torch.ones(1)),
    ],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.parametrize("logit", [-100.0, -1.0, 0.0, 2.0, 100.0])
def test_one_class_one_image(loss, logit):
    for target in (0.0, 1.0):
        value, grad = value_and_grad(loss, torch.tensor([[logit]]), torch.tensor([[target]]))
        assert torch.isfinite(value) and torch.isfinite(grad).all()


@every_loss
@pytest.mark.parametrize("bad, word", [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "infinity")])
def test_bad_logits_name_the_first_bad_row(name, bad, word):
    logits, targets = example()
    logits[3, 1] = logits[5, 2] = bad
    with pytest.raises(LMCLIPError, match=f"Logits hold {word} in row 3"):
        LOSSES[name][0]()(logits, targets)


@every_loss
def test_bad_targets_name_the_first_bad_row(name):
    logits, targets = example()
    targets[4, 0] = math.nan
    with pytest.raises(LMCLIPError, match="Targets hold NaN in row 4"):
        LOSSES[name][0]()(logits, targets)


@every_loss
@pytest.mark.parametrize("shape", [(6, 4), (5, 5), (30,), (6, 5, 1)])
def test_shape_mismatch_prints_both_shapes(name, shape):
    with pytest.raises(LMCLIPError) as error:
        LOSSES[name][0]()(example()[0], torch.zeros(shape))
    assert "(6, 5)" in str(error.value) and str(shape) in str(error.value)


@every_loss
def test_empty_batch_is_refused(name):
    with pytest.raises(LMCLIPError, match="at least one image"):
        LOSSES[name][0]()(torch.zeros(0, 5), torch.zeros(0, 5))


@pytest.mark.parametrize("name", ["class-balanced focal", "db", "db-focal", "bal", "plotted bal"])
def test_wrong_number_of_class_weights_prints_both_shapes(name):
    with pytest.raises(LMCLIPError, match=r"\(5,\) and \(2, 3\)"):
        LOSSES[name][0]()(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 4])
def test_contrastive_and_lmclip_stay_finite_at_logits_of_100(dtype, batch):
    image = torch.nn.functional.one_hot(torch.arange(batch), 8).to(dtype).requires_grad_()
    label = torch.nn.functional.one_hot(torch.arange(5), 8).to(dtype)
    loss = losses.LMCLIPLoss(losses.BalancedAsymmetricLoss(WEIGHT), 0.4)
    for caption in (image.detach(), -image.detach()):
        parts = loss(image, caption, label, torch.tensor(100.0, dtype=dtype), torch.zeros(batch, 5, dtype=dtype))
        (grad,) = torch.autograd.grad(parts["loss"], image)
        assert all(torch.isfinite(part) for part in parts.values()) and torch.isfinite(grad).all()


def test_contrastive_and_lmclip_refuse_bad_features():
    image, caption, label = unit_rows(6, 8, seed=1), unit_rows(6, 8, seed=2), unit_rows(5, 8, seed=3)
    targets = example()[1]
    loss = losses.LMCLIPLoss(losses.BalancedAsymmetricLoss(), 0.4)
    with pytest.raises(LMCLIPError, match=r"\(6, 8\) and \(5, 8\)"):
        losses.ContrastiveLoss()(image, label, 1.0)
    with pytest.raises(LMCLIPError, match=r"\(6, 8\) and \(5, 7\)"):
        loss(image, caption, label[:, :7], 1.0, targets)
    with pytest.raises(LMCLIPError, match=r"\(6, 5\) and \(6, 4\)"):
        loss(image, caption, label, 1.0, targets[:, :4])
    caption[2, 0] = math.nan
    with pytest.raises(LMCLIPError, match="Text features hold NaN in row 2"):
        losses.ContrastiveLoss()(image, caption, 1.0)


def test_autocast_does_not_lower_the_precision_of_the_similarities():
    image, text = unit_rows(5, 64, seed=1).float(), unit_rows(5, 64, seed=2).float()
    plain = losses.ContrastiveLoss()(image, text, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.ContrastiveLoss()(image, text, 100.0), plain)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.BCELoss(reduction="median"), "reduction"),
        (lambda: losses.AsymmetricLoss(clip=1.0), "clip"),
        (lambda: losses.BalancedAsymmetricLoss(label_smoothing=1.0), "label_smoothing"),
        (lambda: losses.BalancedAsymmetricLoss(logit_norm="layer"), "logit_norm"),
        (lambda: losses.DistributionBalancedLoss([5, 0], 9), "Class 1"),
        (lambda: losses.DistributionBalancedLoss([5, 3], 4), "num_images"),
        (lambda: losses.LMCLIPLoss(losses.BalancedAsymmetricLoss(reduction="none"), 0.4), "scalar"),
    ],
)
def test_unusable_settings_are_refused(make, message):
    with pytest.raises(LMCLIPError, match=message):
        make()
