"""What holds for every pose space, size, number of channels and type of number, tried by Hypothesis on many of each.

    pytest tests/test_properties.py                                         # the same examples each time
    pytest tests/test_properties.py --hypothesis-profile=nightly            # more than 10,000, others each time
"""
import json, math
from functools import lru_cache
import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image
from avae.affine import MODES, NAMES, PoseSpace, disc, estimate_background, register, resample, warp
from avae.affine_vae import AffineVAE
from avae.core import check_images, json_text
from avae.data import ImageDir, Images, crops, pad_to, split_valid
from avae.inference import _laplace, _modes, elbo, iw_bound, log_weights, posterior, second_mode
from avae.memory import PoseMemory, _centre_of_ink, agreement, candidates, centred, pose_histograms, pose_report, pose_warning, tally
from avae.models import VAE, Gaussian, load_pretrained
from avae.optimizers import default_budget, multistart, parabola_step, quasi_newton, random_restarts, scan

# --- what is tried: pose spaces, poses, images, models

def numbers(lo, hi): return st.floats(lo, hi, allow_subnormal=False)

@st.composite
def pairs(draw, lo, hi, least, most):
    "Bounds (lowest, highest) within [lo, hi], between `least` and `most` apart."
    a = draw(numbers(lo, hi - least))
    return a, a + draw(numbers(least, max(least, min(most, hi - a))))

def scales(): return st.builds(lambda lo, ratio: (lo, lo*ratio), st.floats(0.3, 1.5), st.floats(1.01, 4))

BOUNDS = {"angle": st.just(180) | st.just((0, 360)) | pairs(-270, 450, 1, 360),
          "scale_x": scales(), "scale_y": scales(), "shear": pairs(-1.5, 1.5, 0.01, 3),
          "shift_x": pairs(-1, 1, 0.01, 2), "shift_y": pairs(-1, 1, 0.01, 2), "flip": st.just(True)}
WHOLE = PoseSpace(angle=180, scale=8, shear=20, shift=8, flip=True)  # any motion that is no collapse

def spaces(names=NAMES):
    "Any subset of the parameters, narrow or wide, whether or not the identity lies within."
    subsets = st.sets(st.sampled_from(names), min_size=1)
    bounds = lambda some: st.fixed_dictionaries({k: BOUNDS[k] for k in names if k in some})
    return subsets.flatmap(bounds).map(lambda b: PoseSpace(**b))

SIZES = st.tuples(st.integers(8, 21), st.integers(8, 21)) | st.integers(8, 21).map(lambda n: (n, n))
SEEDS, CHANNELS, DTYPES = st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([torch.float32, torch.float64])
MODE = st.sampled_from(MODES)

def images(n, c, size, seed, dtype=torch.float32):
    "Coloured blobs of random shape on a background of their own: (n, c, H, W)."
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, c, 5, 5, generator=g, dtype=torch.float64)
    x = F.interpolate(coarse, size, mode="bicubic", align_corners=False).clamp(0, 1)
    return torch.lerp(torch.rand(n, c, 1, 1, generator=g, dtype=torch.float64), x, disc(size).double()).to(dtype)

def poses_of(space, n, seed, dtype=torch.float32): return space.sample(n, seed).to(dtype)

def apart(space, a, b):
    "How far two poses are apart in the unit cube, around the circle if need be."
    d = (space.to_unit(a) - space.to_unit(b)).abs()
    return torch.where(torch.tensor(space.periodic), torch.minimum(d, 1 - d), d)

def dihedral(k, flip): return PoseSpace(angle=180, flip=True).mat(torch.tensor([90.*k, float(flip)]))

def moved(x, k, flip): return torch.rot90(x.flip(-1) if flip else x, k, (-2, -1))

@lru_cache(maxsize=64)
def vae(size, channels, contrast=8.0):
    "An untrained VAE whose energy has hills: its last layer is made steeper."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAE(3, size, channels).eval()
    with torch.no_grad():
        for p in (model.encoder[-1].weight, model.decoder[-3].weight): p.mul_(contrast)
    return model

def avae(space, size, channels, **more): return AffineVAE(vae(size, channels), space, **more)

# --- boxes: values and points of the unit cube

@given(spaces(), SEEDS, DTYPES)
def test_values_come_back_from_the_unit_cube(space, seed, dtype):
    pose = poses_of(space, 16, seed, dtype)
    assert apart(space, space.from_unit(space.to_unit(pose)), pose).max() < 1e-4

@given(spaces(), SEEDS)
def test_every_point_becomes_a_value_within_the_bounds(space, seed):
    u = 3*torch.randn(32, len(space), generator=torch.Generator().manual_seed(seed))
    for v, (lo, hi) in zip(space.from_unit(u).T, space.bounds.values()):
        slack = 1e-6*max(abs(lo), abs(hi))
        assert v.min() >= lo - slack and v.max() <= hi + slack

@given(spaces(), SEEDS)
def test_points_of_the_cube_come_back_from_values(space, seed):
    once = space.from_unit(torch.rand(16, len(space), generator=torch.Generator().manual_seed(seed)))
    assert apart(space, space.from_unit(space.to_unit(once)), once).max() < 1e-4

@given(spaces(), SEEDS, st.integers(1, 40))
def test_samples_and_grids_have_a_density(space, seed, n):
    few = {k: 2 if d else min(3, 1 + n % 4) for k, d in zip(space.names, space.discrete)}
    volume = math.prod(2 if d else math.log(hi/lo) if log else hi - lo
                       for (lo, hi), d, log in zip(space.bounds.values(), space.discrete, space.log))
    for pose in (space.sample(n, seed), space.sobol(n, seed), space.grid(tuple(few.values()))):
        assert torch.allclose(space.log_prob(pose), torch.tensor(-math.log(volume)), atol=1e-3)

@given(spaces(), SEEDS, st.integers(1, 64))
def test_same_seed_same_points(space, seed, n):
    assert torch.equal(space.sample(n, seed), space.sample(n, seed))
    assert torch.equal(space.sobol(n, seed), space.sobol(2*n, seed)[:n])

@given(spaces())
def test_outside_the_bounds_is_no_density(space):
    inside = space.sample(1)
    for i, (name, (lo, hi)) in enumerate(space.bounds.items()):
        if not space.bounded[i]: continue
        for end in (lo - 0.1*(hi - lo), hi + 0.1*(hi - lo)):
            out = inside.clone()
            out[:, i] = end
            assert space.log_prob(out).item() == -math.inf, name

@given(spaces())
def test_a_space_is_what_its_numbers_say(space):
    assert PoseSpace(**json.loads(json.dumps(space.config()))) == space

@given(spaces(), st.floats(1.1, 4))
def test_a_widened_space_holds_the_old_one(space, factor):
    wide = space.widened(factor)
    assert wide.names == space.names and wide.periodic[:1] >= space.periodic[:1]
    for (lo, hi), (a, b) in zip(wide.bounds.values(), space.bounds.values()): assert lo <= a + 1e-9 and hi >= b - 1e-9

@given(spaces())
def test_only_a_full_circle_has_a_period(space):
    around = {k for k, v in zip(space.names, space.periodic) if v}
    for name in NAMES: assert space.period(name) == (360 if name in around else None)
    assert around <= {"angle"} and ("angle" in around) == (space.bounds.get("angle") in ((-180, 180), (0, 360)))

# --- poses and the motions they stand for

@given(spaces(), SEEDS, SIZES, DTYPES)
def test_a_pose_comes_back_from_its_motion(space, seed, size, dtype):
    pose = poses_of(space, 16, seed, dtype)
    assert apart(space, space.from_mat(space.mat(pose, size), size), pose).max() < 2e-3

@given(spaces(), SEEDS, SIZES)
def test_a_motion_is_what_its_parts_are(space, seed, size):
    pose = poses_of(space, 8, seed, torch.float64)
    p = {k: torch.full((8,), float(k.startswith("scale")), dtype=torch.float64) for k in NAMES} | space.as_dict(pose)
    alone = lambda *names: PoseSpace(**{n: True if n == "flip" else 500 if n != "angle" else 180 for n in names}).mat(
        torch.stack([p[n] for n in names], -1), size)
    parts = alone("shift_x", "shift_y") @ alone("angle") @ alone("shear") @ alone("scale_x", "scale_y") @ alone("flip")
    assert torch.allclose(space.mat(pose, size), parts, atol=1e-9)

@given(spaces(), spaces(), SEEDS, SIZES)
def test_motions_compose_to_a_pose(a, b, seed, size):
    both = (a.mat(poses_of(a, 8, seed), size) @ b.mat(poses_of(b, 8, seed + 1), size)).double()
    again = WHOLE.mat(WHOLE.from_mat(both, size), size)
    assert torch.allclose(again, both, atol=1e-6*both.abs().max().item())

@given(spaces(), SEEDS, SIZES)
def test_the_area_grows_by_the_scales(space, seed, size):
    pose = poses_of(space, 8, seed, torch.float64)
    p = space.as_dict(pose)
    grown = p.get("scale_x", 1)*p.get("scale_y", 1)*(1 - 2*p.get("flip", torch.zeros(8, dtype=torch.float64)))
    assert torch.allclose(torch.linalg.det(space.mat(pose, size)), torch.as_tensor(grown).expand(8), rtol=1e-6)

@given(spaces(), SEEDS)
def test_motions_have_gradients(space, seed):
    pose = poses_of(space, 4, seed, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: space.mat(p, (8, 12)), pose)

# --- moving images

@given(CHANNELS, SIZES, SEEDS, DTYPES, MODE, st.none() | numbers(0, 1))
def test_the_identity_moves_no_bit(c, size, seed, dtype, mode, fill):
    x = images(3, c, size, seed, dtype)
    assert torch.equal(warp(x, torch.eye(3), fill, mode), x)

@given(CHANNELS, st.integers(8, 21), SEEDS, DTYPES, MODE, st.integers(0, 3), st.booleans())
def test_quarter_turns_and_mirrors_move_pixels_to_pixels(c, n, seed, dtype, mode, k, flip):
    x = images(2, c, (n, n), seed, dtype)
    assert torch.allclose(warp(x, dihedral(k, flip), None, mode), moved(x, k, flip), atol=1e-4)

@given(CHANNELS, SIZES, SEEDS, st.integers(-6, 6), st.integers(-6, 6), numbers(0, 1),
       st.sampled_from(["bilinear", "nearest"]))
def test_a_shift_by_whole_pixels_copies(c, size, seed, right, down, fill, mode):
    x, (h, w) = images(2, c, size, seed), size
    mat = PoseSpace(shift=8).mat(torch.tensor([2*right/w, 2*down/h]), size)
    want = F.pad(x - fill, (right, -right, down, -down)) + fill
    assert torch.allclose(warp(x, mat, fill, mode), want, atol=1e-4)

@given(spaces(), CHANNELS, SIZES, SEEDS, MODE, st.none() | numbers(0, 1), DTYPES)
def test_a_warp_makes_no_new_light(space, c, size, seed, mode, fill, dtype):
    x = images(4, c, size, seed, dtype)
    y = warp(x, space.mat(poses_of(space, 4, seed), size), fill, mode)
    seen = x if fill is None else torch.cat([x.flatten(2), x.new_full((4, c, 1), fill)], 2)
    lo, hi = (f(seen.flatten(2), -1)[..., None, None] for f in (torch.amin, torch.amax))
    assert y.dtype == dtype and y.shape == x.shape and ((y >= lo - 1e-5) & (y <= hi + 1e-5)).all()

@given(spaces(), CHANNELS, SIZES, SEEDS, MODE, numbers(0, 1))
def test_a_plain_image_stays_plain(space, c, size, seed, mode, light):
    x = torch.full((4, c, *size), light)
    mat = space.mat(poses_of(space, 4, seed), size)
    for fill in (None, light): assert torch.allclose(warp(x, mat, fill, mode), x, atol=1e-5)

@given(spaces(), CHANNELS, SIZES, SEEDS, MODE, st.randoms(use_true_random=False))
def test_a_warp_knows_nothing_of_the_batch(space, c, size, seed, mode, random):
    x, mat = images(5, c, size, seed), space.mat(poses_of(space, 5, seed), size)
    y, order = warp(x, mat, None, mode), random.sample(range(5), 5)
    assert torch.allclose(warp(x[order], mat[order], None, mode), y[order], atol=1e-5)
    assert torch.allclose(torch.cat([warp(a[None], m, None, mode) for a, m in zip(x, mat)]), y, atol=1e-5)

@given(spaces(), CHANNELS, SIZES, SEEDS, st.sampled_from(["bilinear", "bicubic", "soft"]))
def test_single_and_double_precision_agree(space, c, size, seed, mode):
    x, mat = images(2, c, size, seed, torch.float64), space.mat(poses_of(space, 2, seed, torch.float64), size)
    assert torch.allclose(warp(x.float(), mat.float(), 0.5, mode).double(), warp(x, mat, 0.5, mode), atol=1e-3)

@given(CHANNELS, st.integers(17, 33), SEEDS, numbers(-180, 180), numbers(-180, 180))
def test_two_warps_are_one_up_to_interpolation(c, n, seed, first, second):
    x, turn = images(2, c, (n, n), seed), PoseSpace(angle=180)
    a, b = turn.mat(torch.tensor([[first]])), turn.mat(torch.tensor([[second]]))
    twice, once = warp(warp(x, a[0], None, "bicubic"), b[0], None, "bicubic"), warp(x, (b @ a)[0], None, "bicubic")
    back = warp(warp(x, a[0], None, "bicubic"), torch.linalg.inv(a)[0], None, "bicubic")
    inner = disc((n, n)).bool() & (F.max_pool2d(1 - disc((n, n))[None], 7, 1, 3)[0] < 0.5)
    assert (twice - once)[..., inner].abs().mean() < 0.02 and (back - x)[..., inner].abs().mean() < 0.02

@given(spaces(), SIZES, SEEDS)
def test_what_is_not_known_stays_so(space, size, seed):
    x, mat = images(2, 1, size, seed), space.mat(poses_of(space, 2, seed), size)
    x[:, :, size[0]//2, size[1]//2] = math.nan
    y = warp(x, mat, 0.0)
    assert torch.equal(y.isnan().flatten(1).all(1), torch.zeros(2, dtype=torch.bool))
    near = warp(F.max_pool2d(x.isnan().float(), 3, 1, 1), mat, 0.0, "bilinear")
    assert ((near > 0.01) == y.isnan()).all()

@given(CHANNELS, SIZES, SEEDS)
def test_the_background_is_that_of_the_border(c, size, seed):
    x = images(3, c, size, seed)
    want = torch.rand(3, c, generator=torch.Generator().manual_seed(seed))
    edge = torch.where(F.pad(torch.zeros(size[0] - 4, size[1] - 4), (2,)*4, value=1.0).bool(), want[..., None, None], x)
    assert torch.allclose(estimate_background(edge), want)

@given(SIZES)
def test_the_disc_is_round(size):
    d = disc(size)
    assert torch.equal(d, d.flip(0)) and torch.equal(d, d.flip(1)) and torch.allclose(d.T, disc(size[::-1]))
    assert d[0].sum() + d[-1].sum() + d[:, 0].sum() + d[:, -1].sum() <= 4 and (d > 0).any()

@given(spaces(NAMES[:-1]), CHANNELS, SIZES, SEEDS)
def test_registration_never_leads_astray(space, c, size, seed):
    y, start = images(3, c, size, seed), poses_of(space, 3, seed)
    x = warp(y, space.mat(poses_of(space, 3, seed + 1), size), None)
    found, _ = register(y, x, space, start, coarse=1)
    off = lambda p: (resample(y, torch.linalg.inv(space.mat(p, size)), None) - x).square().flatten(1).sum(1)
    assert (off(found) <= off(start) + 1e-4).all() and space.log_prob(found).isfinite().all()

# --- searches, on energies that are known

def bowl(space, wiggles=0.0):
    "An energy whose least place is written on the image; `wiggles` adds valleys beside."
    def energy(x, pose):
        d = (space.to_unit(pose) - x.flatten(1)[:, None].to(pose))
        away = torch.where(torch.tensor(space.periodic), torch.sin(math.pi*d).square(), d.square())
        return 100*away.sum(-1) + wiggles*(1 - torch.cos(8*math.pi*d)).sum(-1) + 5
    return energy

def targets(space, n, seed): return space.to_unit(space.sample(n, seed)).view(n, 1, 1, -1)

SEARCHES = st.sampled_from([scan, multistart, random_restarts])

def least_budget(search, space):
    return {scan: 3, random_restarts: 92}.get(search, 4 if len(space) == 1 and not space.discrete[0] else 8)

@st.composite
def searches(draw):
    space, search = draw(spaces()), draw(SEARCHES)
    return space, search, draw(st.integers(least_budget(search, space), 200)), draw(SEEDS)

@given(searches(), st.floats(0, 20))
def test_a_search_keeps_its_promises(case, wiggles):
    space, search, budget, seed = case
    energy, x = bowl(space, wiggles), targets(space, 4, seed)
    found, identity = search(energy, space, x, budget), space.identity(4)
    assert (found.passes <= budget).all() and torch.equal(found.tried[:, 0], identity)
    assert torch.allclose(energy(x, found.tried), found.energies, rtol=1e-4, atol=1e-3)
    assert (found.energy <= found.energies.amin(1) + 1e-3).all()
    assert torch.allclose(energy(x, found.pose[:, None])[:, 0], found.energy, rtol=1e-4, atol=1e-3)
    still = (found.pose == identity).all(1)
    assert (still | space.log_prob(found.pose).isfinite()).all()

@given(searches(), st.randoms(use_true_random=False))
def test_a_search_knows_nothing_of_the_batch(case, random):
    space, search, budget, seed = case
    energy, x, order = bowl(space, 3), targets(space, 5, seed), random.sample(range(5), 3)
    some, whole = search(energy, space, x[order], budget).energy, search(energy, space, x, budget).energy[order]
    assert torch.allclose(some, whole, rtol=1e-4, atol=1e-3)

@given(searches())
def test_what_is_flat_or_no_number_moves_nothing(case):
    space, search, budget, seed = case
    x = targets(space, 3, seed)
    for bad in (0.0, math.nan, math.inf):
        found = search(lambda x, pose: 0*pose.sum(-1) + bad, space, x, budget)
        assert torch.equal(found.pose, space.identity(3)), bad

@given(searches(), st.integers(1, 4))
def test_a_candidate_is_never_lost(case, k):
    space, search, budget, seed = case
    energy, x = bowl(space, 5), targets(space, 3, seed)
    best = space.from_unit(x.flatten(1))[:, None].repeat(1, k, 1)
    found = search(energy, space, x, budget + k*(90 if search is random_restarts else 1), best)
    assert (found.energy <= energy(x, best)[:, 0] + 2e-3).all()

@given(spaces(NAMES[:-1]), SEEDS)
def test_a_smooth_valley_is_found(space, seed):
    energy, x = bowl(space), targets(space, 3, seed)
    found = multistart(energy, space, x)
    assert (found.energy < 5.2).all()

@given(st.integers(3, 12), st.integers(1, 3), SEEDS)
def test_a_parabola_stays_between_what_is_known(n, k, seed):
    g = torch.Generator().manual_seed(seed)
    u, f = torch.cat([torch.tensor([[0.0, 1.0]]), torch.rand(1, n - 2, generator=g)], 1), torch.rand(1, n, generator=g)
    new = parabola_step(PoseSpace(shear=1), u[..., None], f, k)[..., 0]
    assert new.shape == (1, k) and ((new > 0) & (new < 1)).all() and (new[..., None] - u[:, None]).abs().min() > 0

@given(st.floats(0.05, 0.95) | st.none(), st.floats(0.5, 50), st.lists(st.integers(0, 99), min_size=3, max_size=9, unique=True), st.booleans())
def test_a_parabola_knows_its_bottom(bottom, curve, at, periodic):
    u = torch.tensor([sorted(at)], dtype=torch.float64)/100 + 0.003
    if bottom is None: bottom = u[0, len(at)//2].item()  # it is known already
    f = curve*(u - bottom)**2
    new = parabola_step(PoseSpace(angle=180) if periodic else PoseSpace(shear=1), u[..., None], f, 1).item()
    i, gaps = f.argmin().item(), u[0].diff()
    if not 0 < i < u.shape[1] - 1: return           # the valley has no wall on one side
    step, want = new - u[0, i].item(), bottom - u[0, i].item()
    if abs(want) > 0.06*min(gaps[i - 1], gaps[i]): assert abs(step - want) < 1e-6
    elif abs(want) < 0.04*min(gaps[i - 1], gaps[i]):  # what is known is not tried again: a little towards the wider side
        side = 1 if gaps[i] > gaps[i - 1] else -1
        assert math.isclose(step, side*0.05*min(gaps[i - 1], gaps[i]).item(), rel_tol=1e-6)
    assert abs(step) <= 0.6*max(gaps[i - 1], gaps[i]) + 1e-9

@given(st.integers(3, 9), st.integers(1, 9), st.booleans(), SEEDS)
def test_a_flip_is_a_line_of_its_own(n, others, periodic, seed):
    g, bounds = torch.Generator().manual_seed(seed), dict(angle=180) if periodic else dict(shear=1)
    u = torch.randperm(100, generator=g)[:n + others].double().view(1, -1, 1)/100
    f = torch.rand(1, n + others, generator=g, dtype=torch.float64)
    f[:, n:] += 1000                                 # what lies on the other line is never the best
    side = torch.tensor([0.25]*n + [0.75]*others).view(1, -1, 1)
    new = parabola_step(PoseSpace(**bounds, flip=True), torch.cat([u, side.to(u)], -1), f, 1)[0, 0]
    assert new[1] == 0.25 and torch.equal(new[:1], parabola_step(PoseSpace(**bounds), u[:, :n], f[:, :n], 1)[0, 0])

@given(SEEDS)
def test_steps_that_fail_become_shorter(seed):
    space, g = PoseSpace(shear=1, shift_x=1), torch.Generator().manual_seed(seed)
    start = 0.3 + 0.4*torch.rand(3, 1, 2, generator=g)
    def energy(x, pose):  # its gradient leads away from the start, and nothing there is better
        u = space.to_unit(pose)
        return (u - start).norm(dim=-1).detach() + (u - u.detach()).sum(-1)
    points, values = quasi_newton(energy, space, torch.zeros(3, 1, 1, 1), start, 6, radius=0.1)
    length = (points - start)[:, 1:].norm(dim=-1)
    assert points.shape == (3, 6, 2) and torch.allclose(length[:, :1], torch.tensor(0.1)) and (length.diff(dim=1) < -0.5*length[:, :-1]).all()

def test_budgets_of_searches_that_nobody_has_limited():
    assert default_budget(PoseSpace(angle=180)) == default_budget(PoseSpace(shear=1)) == 26
    assert (default_budget(PoseSpace(angle=180, shift=0.2)), default_budget(PoseSpace(flip=True))) == (120, 3)

# --- poses that are carried along

GROUPS = [("angle",), ("shift_x", "shift_y"), ("angle", "shift_x", "shift_y"), ("scale_x", "scale_y"),
          ("angle", "flip"), ("scale_x", "scale_y", "shift_x", "shift_y"), NAMES]

@given(spaces(), SEEDS, SIZES)
def test_a_pose_is_remembered(space, seed, size):
    memory, pose, idx = PoseMemory(6, space, size), poses_of(space, 4, seed), torch.tensor([5, 0, 3, 2])
    still = torch.eye(3).expand(4, 3, 3)
    memory.store(idx, pose, still)
    assert apart(space, memory.carry(idx, still), pose).max() < 5e-3
    assert memory.carry(torch.tensor([1, 4]), still[:2]).isnan().all()

@given(st.sampled_from(GROUPS), SEEDS, SIZES)
def test_a_pose_is_carried_with_the_image(names, seed, size):
    space = PoseSpace(**{k: {"angle": 180, "flip": True, "shear": 1}.get(k, 3 if k[1] == "c" else 2) for k in names})
    memory, idx, pose = PoseMemory(4, space, size), torch.arange(4), poses_of(space, 4, seed)
    small = space.from_unit(0.5 + 0.3*(space.to_unit(pose) - 0.5))
    first, second = (space.mat(poses_of(space, 4, seed + k), size) for k in (1, 2))
    memory.store(idx, small, first)
    want = second @ torch.linalg.inv(first) @ space.mat(small, size)
    free = space.from_mat(want, size)
    inside = ((space.to_unit(free) >= 0) & (space.to_unit(free) <= 1) | torch.tensor(space.periodic)).all(1)
    assert torch.allclose(space.mat(memory.carry(idx, second), size)[inside], want[inside], rtol=1e-2, atol=1e-2)

@given(spaces(), SEEDS, st.integers(2, 4))
def test_what_one_process_finds_all_know(space, seed, processes):
    memories, still = [PoseMemory(12, space) for _ in range(processes)], torch.eye(3)[None].expand(12, 3, 3)
    pose = poses_of(space, 12, seed)
    for rank, m in enumerate(memories):
        mine = torch.arange(12)[rank::processes]
        m.store(mine, pose[mine], still[mine])
    sums = []
    for m in memories: m.__class__.sync(_copy(m), lambda v: sums.append(v) or v)
    for m in memories: m.sync(lambda v: torch.stack(sums).sum(0))
    assert all(torch.equal(m.pose, memories[0].pose) and not m.changed.any() for m in memories)
    assert apart(space, memories[0].pose, pose).max() < 5e-3

def _copy(m):
    c = PoseMemory(len(m.pose), m.poses, m.size)
    c.pose, c.changed = m.pose.clone(), m.changed.clone()
    return c

@given(spaces(), SEEDS, st.integers(1, 30))
def test_starts_and_middles_lie_within_the_bounds(space, seed, n):
    pose = poses_of(space, n, seed)
    some, middle = candidates(space, pose), centred(space, pose)
    assert space.log_prob(some).isfinite().all() and space.log_prob(middle).isfinite().all()
    off = lambda p: (space.to_unit(p).mean(0) - 0.5).abs()[torch.tensor(space.bounded)]
    assert (off(middle) <= off(pose) + 1e-4).all()

@given(spaces(), SEEDS, st.integers(0, 40), st.integers(1, 36))
def test_every_known_pose_is_counted_once(space, seed, n, bins):
    pose, labels = poses_of(space, n + 2, seed), torch.arange(n + 2) % 3
    pose[:2] = math.nan
    for name, h in pose_histograms(pose, space, labels, bins).items():
        assert sum(h["counts"]["all"]) == n == sum(sum(c) for k, c in h["counts"].items() if k != "all")
        assert len(h["edges"]) == len(h["counts"]["all"]) + 1 and h["edges"] == sorted(h["edges"]), name
    assert all(0 <= v <= 1 for v in agreement(pose, space, labels).values())

@given(spaces(), SEEDS, st.integers(1, 40))
def test_reports_are_shares(space, seed, n):
    report = pose_report(space, tally(space, poses_of(space, n, seed), poses_of(space, n, seed + 1)).tolist())
    shares = [report["unmoved"], report["crowding"], *report["at_bound"].values(), *report["moved"].values()]
    assert report["searched"] == n and all(-1e-6 <= v <= 1 + 1e-5 for v in shares)

@given(SIZES, SEEDS)
def test_what_is_symmetric_has_its_centre_in_the_middle(size, seed):
    y = images(3, 2, size, seed) - 0.5
    both = torch.stack([y, y.flip(-1), y.flip(-2), y.flip(-1, -2)]).amax(0)
    assert _centre_of_ink(both, torch.ones(size)).abs().max() < 1e-4

# --- the Affine VAE

def shapes(most=16): return st.tuples(st.integers(8, most), st.integers(8, most))

@given(spaces(), st.integers(1, 3), shapes(), SEEDS)
def test_at_the_identity_it_is_its_vae(space, c, size, seed):
    x, model = images(3, c, size, seed), avae(space, size, c, mask=None)
    out, plain = model(x, pose=space.identity(3)), model.vae(x)
    assert torch.equal(out.recon, plain.recon) and torch.equal(out.loss, plain.loss) and torch.equal(out.canonical, x)

@given(spaces(), st.integers(1, 3), shapes(), SEEDS, st.integers(0, 3), st.sampled_from([scan, multistart]))
def test_no_image_is_worse_off_than_at_the_identity(space, c, size, seed, more, search):
    x, model = images(3, c, size, seed), avae(space, size, c, search=search)
    found = model(x, least_budget(search, space) + 1 + 8*more)
    assert (found.loss <= model(x, pose=space.identity(3)).loss + 2e-3).all()

@given(spaces(), st.integers(1, 3), shapes(), SEEDS, st.integers(0, 3))
def test_a_prior_costs_no_more_than_it_weighs(space, c, size, seed, more):
    prior, identity = lambda pose: 20*torch.sin(3*pose.sum(-1)), space.identity(3)
    x, model = images(3, c, size, seed), avae(space, size, c, pose_prior=prior)
    found, still = model(x, least_budget(multistart, space) + 1 + 8*more), model(x, pose=identity)
    assert (found.loss - prior(found.pose) <= still.loss - prior(identity) + 2e-3).all()

@given(spaces(), st.integers(1, 3), shapes(), SEEDS, st.integers(1, 512), DTYPES)
def test_chunks_change_no_result(space, c, size, seed, chunk, dtype):
    x, model = images(5, c, size, seed, dtype), avae(space, size, c)
    whole = model(x, 24)
    model.chunk = chunk
    part = model(x, 24)
    assert part.loss.dtype == dtype and torch.allclose(part.loss, whole.loss, rtol=1e-3, atol=1e-2)

@given(spaces(), shapes(), SEEDS, st.integers(1, 512))
def test_gradients_come_in_chunks_too(space, size, seed, chunk):
    x, model, pose = images(3, 1, size, seed), avae(space, size, 1), poses_of(space, 15, seed).view(3, 5, -1)
    def gradient(chunk):
        model.chunk, p = chunk, pose.clone().requires_grad_()
        return torch.autograd.grad(model.energy(x, p).sum(), p)[0]
    a, b = gradient(256), gradient(chunk)
    assert torch.allclose(a, b, rtol=1e-3, atol=1e-3*a.abs().max().item() + 1e-6)

@given(spaces(), st.integers(1, 3), shapes(), SEEDS, st.randoms(use_true_random=False))
def test_other_images_change_no_result(space, c, size, seed, random):
    x, model, order = images(5, c, size, seed), avae(space, size, c), random.sample(range(5), 3)
    assert torch.allclose(model(x[order], 24).loss, model(x, 24).loss[order], rtol=1e-3, atol=1e-2)

@given(spaces(), st.integers(1, 3), st.integers(8, 17), SEEDS, st.integers(0, 3), st.booleans())
def test_energy_follows_a_turned_image(space, c, n, seed, k, flip):
    x, pose, free = images(2, c, (n, n), seed), poses_of(space, 8, seed).view(2, 4, -1), avae(WHOLE, (n, n), c)
    mat = space.mat(pose, (n, n))
    old, new = (free.energy(moved(x, *by), WHOLE.from_mat(dihedral(*by) @ mat)) for by in ((0, False), (k, flip)))
    assert torch.allclose(old, new, rtol=1e-3, atol=1e-2)

@given(st.integers(1, 3), st.integers(9, 16), SEEDS, st.integers(1, 3), st.integers(3, 10))
def test_the_search_follows_a_turned_image(c, n, seed, k, quarter):
    turn = PoseSpace(angle=180)
    x = images(2, c, (n, n), seed)
    model = avae(turn, (n, n), c, search=scan, budget=4*quarter + 1)  # a grid that turns with it

    one, two = (model.search(moved(x, by, False)) for by in (0, k))
    assert torch.allclose(one.energy, two.energy, rtol=1e-3, atol=1e-2)
    best, next_best = one.energies.topk(2, largest=False).values.T
    same = torch.isclose(turn.mat(two.pose), dihedral(k, False) @ turn.mat(one.pose), atol=1e-3).flatten(1).all(1)
    assert (same | (next_best - best < 0.05)).all()

@given(spaces(), st.integers(1, 3), st.integers(12, 21), SEEDS, numbers(0, 1))
def test_nothing_prefers_no_pose(space, c, n, seed, light):
    x, model = torch.full((2, c, n, n), light), avae(PoseSpace(**(space.config() | {"angle": 180})), (n, n), c)
    x[1] = torch.rand(c, generator=torch.Generator().manual_seed(seed))[:, None, None]
    flat = AffineVAE(vae((n, n), c, 1.0), model.poses)  # untrained: its decoder says one grey for all
    energy = flat.energy(x, poses_of(model.poses, 32, seed).view(2, 16, -1))
    assert ((energy.amax(1) - energy.amin(1)) < 5e-3*energy.mean(1)).all()

@given(spaces(), st.integers(1, 3), shapes(), SEEDS)
def test_codes_and_poses_draw_the_reconstruction(space, c, size, seed):
    x, model = images(3, c, size, seed), avae(space, size, c)
    out = model(x, pose=poses_of(space, 3, seed))
    assert torch.allclose(model.decode(out.mu, out.pose), out.recon, atol=1e-5)

@given(spaces(), st.integers(1, 3), shapes(), SEEDS)
def test_pixels_that_are_not_known_do_not_count(space, c, size, seed):
    x, model, pose = images(3, c, size, seed), avae(space, size, c), poses_of(space, 3, seed)
    x[:, :, size[0]//2:size[0]//2 + 2] = math.nan
    out = model(x, pose=pose)
    assert out.loss.isfinite().all() and not out.recon.isnan().any()
    shown = model.nll(x, out.recon)
    assert torch.allclose(shown, out.nll, rtol=1e-4) and (model.nll(x.nan_to_num(0.9), out.recon) > shown).all()

@settings(max_examples=max(3, settings().max_examples//10))
@given(spaces(), st.integers(1, 3), shapes(), SEEDS)
def test_what_is_saved_gives_the_same_poses(tmp_path_factory, space, c, size, seed):
    x, inner = images(2, c, size, seed), VAE(3, size, c, likelihood=Gaussian(0.2)).eval()
    model = AffineVAE(inner, space, budget=24, chunk=7)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(model(x), load_pretrained(folder)(x)))

# --- posteriors over poses

@settings(max_examples=max(5, settings().max_examples//2))
@given(spaces(NAMES[:-1]), shapes(12), SEEDS)
def test_a_posterior_is_one(space, size, seed):
    p = posterior(avae(space, size, 1), images(2, 1, size, seed), 40, 32)
    assert torch.allclose(p.log_weight.exp().sum(1), torch.ones(2), atol=1e-4)
    assert (p.log_mass <= 0).all() and torch.allclose(p.log_mass.exp().sum(1), torch.ones(2), atol=1e-3)
    assert (p.log_mass.diff(dim=1).nan_to_num() <= 0).all() and (p.kl > -0.5).all() and (p.width >= 0).all()
    assert ((p.effective >= 1 - 1e-3) & (p.effective <= 32 + 1e-3)).all()
    drawn = p.sample(64, seed % 1000)
    assert (drawn[:, :, None] == p.draws[:, None]).all(-1).any(-1).all()
    assert torch.equal(drawn, p.sample(64, seed % 1000))
    assert space.log_prob(p.draws[p.log_weight > -math.inf]).isfinite().all()

@settings(max_examples=max(5, settings().max_examples//2))
@given(spaces(NAMES[:-1]), shapes(12), SEEDS)
def test_evidence_less_entropy_is_the_loss(space, size, seed):
    model, x = avae(space, size, 1), images(2, 1, size, seed)
    p = posterior(model, x, 40, 32)
    known = p.log_weight > -math.inf
    loss = (p.log_weight.exp()*torch.where(known, model.energy(x, p.draws), 0)).sum(1)
    assert torch.allclose(-p.log_evidence, loss + p.kl, rtol=1e-3, atol=1e-2)
    assert torch.allclose(p.entropy, -p.kl, atol=1e-3)  # the prior is even over the unit cube
    still = model(x, pose=space.identity(2)).loss
    assert torch.allclose(p.gain, p.log_evidence + still, rtol=1e-3, atol=1e-2)

LINES = st.sampled_from(NAMES[:-1]).flatmap(lambda name: BOUNDS[name].map(lambda b: PoseSpace(**{name: b})))

@settings(max_examples=max(5, settings().max_examples//2))
@given(LINES, shapes(12), SEEDS)
def test_the_evidence_is_the_mean_over_all_poses(space, size, seed):
    model, x = avae(space, size, 1), images(2, 1, size, seed)
    true = (-model.energy(x, space.grid(1000).expand(2, -1, -1))).logsumexp(1) - math.log(1000)
    p = posterior(model, x, 40, 128)
    assert ((p.log_evidence - true).abs()[p.effective > 20] < 0.3).all()

@given(searches())
def test_the_second_mode_is_elsewhere(case):
    space, search, budget, seed = case
    found = search(bowl(space, 5), space, targets(space, 3, seed), budget)
    pose, above = second_mode(found, space, 0.1)
    some = above.isfinite()
    assert (apart(space, pose, found.pose).amax(1)[some] > 0.1).all() and (above[some] >= 0).all()
    far = (apart(space, found.tried, found.pose[:, None]).amax(-1) > 0.1) & found.energies.isfinite()
    least = torch.where(far, found.energies, math.inf).amin(1)
    assert torch.equal(some, least.isfinite())
    assert torch.allclose((least - found.energy).clamp_min(0)[some], above[some], atol=1e-4)

@given(st.floats(0.55, 0.9), st.floats(0.01, 0.02), st.floats(0.005, 0.02), st.booleans(), SEEDS)
def test_modes_are_clouds_of_draws(heavy, wide, narrow, swapped, seed):
    space, g, n = PoseSpace(angle=180, shear=1), torch.Generator().manual_seed(seed), 400
    clouds = [(torch.tensor([0.99, 0.3]), wide, heavy), (torch.tensor([0.4, 0.7]), narrow, 1 - heavy)]  # one lies across the end of the circle
    u = torch.cat([m + s*torch.randn(1, n, 2, generator=g) for m, s, _ in clouds], 1)
    w = torch.cat([torch.full((1, n), m/n) for _, _, m in clouds], 1)
    middle = torch.stack([m + 0.01 for m, _, _ in (clouds[::-1] if swapped else clouds)])[None]
    pose, mass, width = _modes(space, torch.stack([u[..., 0] % 1, u[..., 1]], -1), w, middle, torch.zeros(1, 2))
    for k, (m, s, share) in enumerate(clouds):
        assert apart(space, pose[0, k], space.from_unit(m)).max() < 5*s/math.sqrt(n)
        assert abs(mass[0, k].exp().item() - share) < 1e-5
        assert torch.allclose(width[0, k], s*torch.tensor([360., 2.]), rtol=0.2)

@given(st.floats(-0.02, 0.02), st.floats(5, 500))
def test_the_two_ends_of_a_range_are_alike(beyond, curve):
    space, x = PoseSpace(shear=1), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    def end(at):  # the valley lies at this end, or a little inside or outside
        energy = lambda x, pose: curve*(space.to_unit(pose) - (1 - beyond if at else beyond)).square().sum(-1)
        return _laplace(energy, space, x, torch.full((1, 1, 1), at, dtype=torch.float64))
    (low, low_scale, low_mass, n), (high, high_scale, high_mass, _) = end(0.0), end(1.0)
    assert torch.allclose(low, 1 - high, atol=1e-3) and torch.allclose(low_mass, high_mass, atol=0.05) and n == 3
    assert torch.allclose(low_scale.abs(), high_scale.abs(), rtol=0.05)

@given(spaces(["angle", "shear", "scale_x"]), SEEDS)
def test_the_share_of_all_poses_is_one(space, seed):
    p = posterior(avae(space, (10, 10), 1), images(2, 1, (10, 10), seed), 40, 32)
    assert torch.allclose(p.share(space, within=1.1), torch.ones(2), atol=1e-3)
    assert (p.share(space, within=0) == 0).all()
    less, more = p.share(space, within=0.05), p.share(space, within=0.2)
    assert (less <= more + 1e-6).all()

@given(st.floats(0, 1))
def test_a_frame_that_decides_is_told(crowding):
    report = dict(searched=200, unmoved=0.1, crowding=crowding, at_bound={"angle": 0.0}, moved={"angle": 0.0})
    assert ("crowd" in (pose_warning(report, 0.5) or "")) == (crowding > 0.4)
    assert pose_warning(report | {"searched": 99}, 0.5) is None

@given(shapes(12), SEEDS, st.integers(1, 20))
def test_more_codes_bound_more_tightly(size, seed, samples):
    x, model = images(3, 1, size, seed), vae(size, 1)
    w = log_weights(model, x, samples, seed % 1000)
    assert w.likelihood.shape == (3, samples) and (w.kl >= 0).all()
    assert torch.allclose(elbo(model, x, samples, seed % 1000), w.likelihood.mean(1) - w.kl, atol=1e-4)
    each = w.likelihood + w.prior - w.posterior
    assert (iw_bound(model, x, samples, seed % 1000) >= each.mean(1) - 1e-3).all()

# --- images and tables

@given(CHANNELS, SIZES, SEEDS, st.integers(0, 9), numbers(0, 1))
def test_padding_keeps_every_pixel(c, size, seed, more, fill):
    x, side = images(2, c, size, seed), max(size) + more
    y, (top, left) = pad_to(x, side, fill), [(side - n)//2 for n in size]
    assert y.shape == (2, c, side, side) and torch.equal(y[:, :, top:top + size[0], left:left + size[1]], x)
    beside = fill*2*c*(side*side - size[0]*size[1])
    assert torch.isclose(y.double().sum(), x.double().sum() + beside, rtol=1e-5, atol=1e-3)

@given(CHANNELS, SIZES, SEEDS)
def test_bytes_are_images(c, size, seed):
    x = (255*images(2, c, size, seed)).round().byte()
    y = check_images(x)
    assert torch.equal((255*y).round().byte(), x) and torch.equal(check_images(y), y)

@given(st.integers(1, 60), st.data(), st.integers(0, 99))
def test_a_split_loses_nothing(n, data, seed):
    valid = data.draw(st.integers(0, n - 1))
    parts = split_valid(Images(torch.arange(n).view(n, 1, 1, 1)/n, torch.arange(n)), valid, seed)
    assert len(parts[1].images) == valid
    assert torch.cat([p.labels for p in parts]).sort().values.tolist() == list(range(n))
    assert all(torch.equal((p.images.flatten()*n).round().long(), p.labels) for p in parts)

@given(CHANNELS, SIZES, SEEDS, st.integers(3, 24))
def test_a_window_shows_what_is_there(c, size, seed, side):
    field, (h, w) = images(1, c, size, seed), size
    g = torch.Generator().manual_seed(seed)
    at = (torch.rand(4, 2, generator=g)*torch.tensor([w, h])).floor()
    cut, middle = crops(field, side, centres=at), side//2  # an even window has one pixel more before its middle
    assert cut.images.shape == (4, c, side, side) and torch.equal(cut.centres.float(), at)
    true = torch.stack([field[0, :, int(y), int(x)] for x, y in at])
    assert torch.allclose(cut.images[..., middle, middle], true, atol=1e-5)

PIXELS = {"L": (np.uint8, ()), "RGB": (np.uint8, (3,)), "I;16": (np.uint16, ())}

@settings(max_examples=max(5, settings().max_examples//3))
@given(st.sampled_from(list(PIXELS)), SIZES, SEEDS, st.sampled_from([".png", ".tif", ".npy"]))
def test_a_picture_comes_back_from_its_file(tmp_path_factory, mode, size, seed, suffix):
    kind, samples = PIXELS[mode]
    a = np.random.default_rng(seed).integers(0, np.iinfo(kind).max + 1, (*size, *samples)).astype(kind)
    file = tmp_path_factory.mktemp("pictures")/f"a{suffix}"
    np.save(file, a[None]) if suffix == ".npy" else Image.fromarray(a).save(file)
    x, _ = ImageDir(file, max(size), 3 if samples else 1, normalize="none")[0]
    want = torch.as_tensor(a.astype(np.float32)/np.iinfo(kind).max)
    want = want.permute(2, 0, 1) if samples else want[None]
    top, left = ((max(size) - n)//2 for n in size)
    assert torch.allclose(x[:, top:top + size[0], left:left + size[1]], want, atol=1e-5)

NUMBERS = st.recursive(
    st.none() | st.booleans() | st.integers(-2**40, 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6)

@given(NUMBERS)
def test_records_are_strict_json(what):
    none = lambda v: (_ for _ in ()).throw(ValueError(v))
    again = json.loads(json_text(what), parse_constant=none)
    assert json_text(again) == json_text(what)
