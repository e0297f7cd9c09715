"""The same numbers by other people's code, by closed formulas, or by brute force.

    pytest tests/test_against.py                        # no difference is above its limit
    python tests/test_against.py nbs/results/against.json     # the table for the page on trust
"""
import json, math, sys, tempfile
from pathlib import Path
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli, MultivariateNormal, Normal, kl_divergence
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from avae.affine import PoseSpace, warp
from avae.affine_vae import AffineVAE
from avae.inference import elbo, iw_bound
from avae.models import VAE, Bernoulli, Gaussian, StandardNormal
from avae.optimizers import multistart, quasi_newton, random_restarts
from avae.processes import Processes, SyncBatchNorm2d, launch

COMPARED = {}  # name: (function -> (largest difference, number of cases), limit, unit)

def compare(name, limit, unit):
    def keep(f):
        COMPARED[name] = f, limit, unit
        return f
    return keep

# --- warps

SIZES = [(16, 16), (17, 17), (16, 25), (31, 12)]
EVERY = PoseSpace(angle=180, scale=1.6, shear=0.6, shift=0.5, flip=True)

def cases(space=EVERY, n=8):
    "Images (n, 3, H, W) of every shape, and poses for them."
    for k, size in enumerate(SIZES):
        x = torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        yield x, space.sample(n, k).double(), size

def in_pixels(mat, size):
    "A motion as one of pixels: 0, 0 is the middle of the first."
    (h, w), short = size, min(size)
    to = torch.tensor([[short/2, 0, (w - 1)/2], [0, short/2, (h - 1)/2], [0, 0, 1]], dtype=mat.dtype)
    return to @ mat @ torch.linalg.inv(to)

def largest(pairs):
    "The largest difference between the members of pairs, and how many pairs there were."
    found = [(a - b).abs().max().item() for a, b in pairs]
    return max(found), len(found)

def by_kornia(mode, padding, fill):
    from kornia.geometry.transform import warp_affine
    for x, pose, size in cases():
        mat = EVERY.mat(pose, size)
        theirs = warp_affine(x, in_pixels(mat, size)[:, :2], size, mode, padding, align_corners=True)
        if mode == 'bicubic': theirs = torch.minimum(torch.maximum(theirs, x.amin((2, 3), True)), x.amax((2, 3), True))
        yield warp(x, mat, fill, mode), theirs

@compare('warp, bilinear, black beyond: kornia', 1e-5, 'of 1')
def _(): return largest(by_kornia('bilinear', 'zeros', 0.0))

@compare('warp, nearest, black beyond: kornia', 1e-5, 'of 1')
def _(): return largest(by_kornia('nearest', 'zeros', 0.0))

@compare('warp, bilinear, as its border beyond: kornia', 1e-5, 'of 1')
def _(): return largest(by_kornia('bilinear', 'border', None))

@compare('warp, bicubic, as its border beyond: kornia, its overshoot cut off', 1e-5, 'of 1')
def _(): return largest(by_kornia('bicubic', 'border', None))

@compare('warp: torchvision affine (angles clockwise, shear in degrees)', 1e-4, 'of 1')
def _():
    space = PoseSpace(angle=180, scale_x=1.6, shear=0.6, shift=0.3)
    def pairs():
        for x, pose, size in cases(space):
            p = space.as_dict(pose)
            whole = dict(angle=p['angle'], scale_x=p['scale_x'], scale_y=p['scale_x'], shear=p['shear'],
                         shift_x=p['shift_x'], shift_y=p['shift_y'])
            mat = PoseSpace(angle=180, scale=1.6, shear=0.6, shift=0.3).mat(torch.stack([*whole.values()], -1), size)
            for image, m, i in zip(x, mat, range(len(x))):
                move = [p['shift_x'][i].item()*size[1]/2, p['shift_y'][i].item()*size[0]/2]
                lean = -math.degrees(math.atan(p['shear'][i].item()))
                theirs = tv.affine(image, -p['angle'][i].item(), move, p['scale_x'][i].item(), [lean, 0.0],
                                   InterpolationMode.BILINEAR)
                yield warp(image[None], m)[0], theirs
    return largest(pairs())

@compare('warp: torchvision rotate', 1e-4, 'of 1')
def _():
    turn = PoseSpace(angle=180)
    return largest((warp(x[:1], turn.mat(pose[:1]))[0], tv.rotate(x[0], pose[0].item(), InterpolationMode.BILINEAR))
                   for x, pose, _ in cases(turn))

@compare('warp, bilinear: scipy.ndimage.affine_transform, which is not by PyTorch', 1e-5, 'of 1')
def _():
    from scipy.ndimage import affine_transform
    def pairs():
        for x, pose, size in cases():
            mat = EVERY.mat(pose, size)
            for image, m in zip(x, mat):
                back = torch.linalg.inv(in_pixels(m, size)).numpy()[:2][::-1, [1, 0, 2]]  # rows before columns
                theirs = [affine_transform(c.numpy(), back[:, :2], back[:, 2], order=1, mode='grid-constant')
                          for c in image]
                yield warp(image[None], m)[0], torch.tensor(np.stack(theirs))
    return largest(pairs())

# --- losses and bounds

def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

@compare('KL to N(0, I): torch.distributions', 1e-9, 'nats')
def _():
    mu, logvar = 2*random(500, 8), random(500, 8, seed=1)
    theirs = kl_divergence(Normal(mu, (0.5*logvar).exp()), Normal(torch.zeros_like(mu), 1)).sum(1)
    return largest([(StandardNormal().kl(mu, logvar), theirs)])

@compare('Bernoulli likelihood: torch.distributions', 1e-9, 'nats')
def _():
    x, xhat = torch.sigmoid(random(50, 1, 12, 12)), torch.sigmoid(3*random(50, 1, 12, 12, seed=1))
    kept = xhat.lerp(1 - xhat, 1e-6)  # our probabilities end at a millionth
    theirs = -TorchBernoulli(kept, validate_args=False).log_prob(x).flatten(1).sum(1)
    return largest([(Bernoulli().nll(x, xhat), theirs)])

@compare('Gaussian likelihood: torch.distributions', 1e-9, 'nats')
def _():
    x, xhat, ours = random(50, 2, 9, 9), random(50, 2, 9, 9, seed=1), Gaussian(0.3).double()
    theirs = -Normal(xhat, ours.log_sigma.exp()).log_prob(x).flatten(1).sum(1)
    return largest([(ours.nll(x, xhat), theirs)])

class Linear(nn.Module):
    "x = W z + noise: here the evidence and the posterior have formulas (probabilistic PCA)."
    sigma = 0.5

    def __init__(self, better=1.0):
        super().__init__()
        self.likelihood, self.prior, self.better = Gaussian(self.sigma), StandardNormal(), better
        self.W, self.b = 0.3*random(64, 3).float(), 0.5 + 0.1*random(64, seed=1).float()
        precision = self.W.T @ self.W/self.sigma**2 + torch.eye(3)
        self.cov = torch.linalg.inv(precision)

    def encode(self, x):
        "The true means, and the best Gaussian without correlations, or one that is wider."
        mu = (x.flatten(1) - self.b) @ self.W @ self.cov/self.sigma**2
        return mu, -torch.linalg.inv(self.cov).diagonal().log().expand(len(x), 3) + 2*math.log(self.better)

    def decode(self, z): return (z @ self.W.T + self.b).view(-1, 1, 8, 8)

    def evidence(self, x):
        cov = self.W @ self.W.T + self.sigma**2*torch.eye(64)
        return MultivariateNormal(self.b.double(), cov.double()).log_prob(x.flatten(1).double())

    def gap(self, x):
        mu, logvar = self.encode(x)
        q = MultivariateNormal(mu.double(), torch.diag_embed(logvar.exp()).double())
        return kl_divergence(q, MultivariateNormal(mu.double(), self.cov.double()))

def linear_case(better=1.0):
    model = Linear(better)
    return model, torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(3))

@compare('ELBO of a linear model: its closed form, the evidence less the KL from the true posterior', 0.05, 'nats')
def _():
    return largest((elbo(m, x, 4096).double(), m.evidence(x) - m.gap(x)) for m, x in map(linear_case, (1.0, 1.5)))

@compare('importance-weighted bound of a linear model: the evidence', 0.03, 'nats')
def _(): return largest((iw_bound(m, x, 20000).double(), m.evidence(x)) for m, x in map(linear_case, (1.0, 1.5)))

def nonlinear_vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE(2, 12, likelihood=Gaussian(0.5)).eval()
    with torch.no_grad(): vae.decoder[-3].weight.mul_(20)
    return vae, torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(4))

@torch.no_grad()
def integral(decode, nll, x, n=101, far=4.5):
    "log p(x) over a grid of codes (Riemann), for two latents."
    line = torch.linspace(-far, far, n)
    z, cell = torch.cartesian_prod(line, line), (2*far/(n - 1))**2
    prior = Normal(0., 1.).log_prob(z).sum(1).double()
    joint = [prior[k] - nll(x, decode(z[k])).double() for k in torch.arange(len(z)).split(1024)]
    return torch.logsumexp(torch.cat(joint), 0) + math.log(cell)

@compare('importance-weighted bound of a VAE with 2 latents: an integral over 10,201 codes', 0.02, 'nats')
def _():
    vae, x = nonlinear_vae()
    nll = lambda one, seen: vae.likelihood.nll(one.expand_as(seen), seen)
    true = torch.stack([integral(vae.decode, nll, one[None]) for one in x])
    return largest([(iw_bound(vae, x, 8192).double(), true)])

@compare('the same of an Affine VAE, at given poses', 0.02, 'nats')
def _():
    vae, x = nonlinear_vae()
    model = AffineVAE(vae, PoseSpace(angle=180, scale=1.3)).eval()
    pose = model.poses.sample(len(x))
    nll = lambda one, seen: model.nll(one.expand_as(seen), seen)
    true = torch.stack([integral(lambda z: model.decode(z, p.expand(len(z), -1)), nll, one[None])
                        for one, p in zip(x, pose)])
    return largest([(iw_bound(model, x, 8192, pose=pose).double(), true)])

# --- several processes

def normalise(folder, x, grad):
    "In each process: its part of a batch through the layer, forth and back."
    rank = Processes('cpu').rank
    part = slice(0, 3) if rank == 0 else slice(3, None)  # unequal shares
    layer, v = SyncBatchNorm2d(x.shape[1]), x[part].clone().requires_grad_()
    (layer(v)*grad[part]).sum().backward()
    torch.distributed.all_reduce(layer.weight.grad)
    found = dict(grad=v.grad, weight=layer.weight.grad, mean=layer.running_mean, var=layer.running_var)
    save_file(found, f'{folder}/{rank}')

@compare('batch normalisation over two processes: nn.BatchNorm2d on the joined batch', 1e-4, '')
def _():
    x, grad, layer = random(8, 3, 5, 6).float()*2 + 1, random(8, 3, 5, 6, seed=1).float(), nn.BatchNorm2d(3)
    v = x.clone().requires_grad_()
    (layer(v)*grad).sum().backward()
    with tempfile.TemporaryDirectory() as folder:
        launch(normalise, folder, x, grad)
        a, b = (load_file(f'{folder}/{rank}') for rank in (0, 1))
    joined = [(torch.cat([a['grad'], b['grad']]), v.grad), (a['weight'], layer.weight.grad)]
    return largest([*joined, *((p[k], getattr(layer, f'running_{k}')) for p in (a, b) for k in ('mean', 'var'))])

# --- searches

SQUARE = PoseSpace(shift_x=1, shift_y=1)
FUNCTIONS = {
    'narrow bowl': lambda p: 50*(p[..., 0] - 0.3 + 0.5*(p[..., 1] + 0.2))**2 + 2*(p[..., 1] + 0.2)**2,
    'Rosenbrock': lambda p: (1 - 2*p[..., 0])**2 + 10*(2*p[..., 1] - 4*p[..., 0]**2)**2,
    'Himmelblau': lambda p: ((5*p[..., 0])**2 + 5*p[..., 1] - 11)**2 + (5*p[..., 0] + (5*p[..., 1])**2 - 7)**2,
    'Beale': lambda p: sum((c - 4*p[..., 0]*(1 - (4*p[..., 1])**k))**2 for k, c in ((1, 1.5), (2, 2.25), (3, 2.625))),
    'beyond the bounds': lambda p: (p[..., 0] - 1.4)**2 + (p[..., 1] + 0.3)**2 + 0.5*p[..., 0]*p[..., 1]}

def by_scipy(f, starts):
    "The least value that L-BFGS-B finds from any of these starts."
    from scipy.optimize import minimize
    def both(u):
        p = SQUARE.from_unit(torch.tensor(u)).requires_grad_()
        value = f(p)
        return value.item(), 2*torch.autograd.grad(value, p)[0].numpy()  # the square is 2 wide
    return [minimize(both, u, jac=True, method='L-BFGS-B', bounds=[(0, 1)]*2, options=dict(maxiter=500, ftol=1e-14)).fun
            for u in starts.double().numpy()]

@compare('quasi-Newton, 40 gradients from each of 12 starts: the excess over L-BFGS-B of SciPy', 1e-3, 'of the range')
def _():
    found, starts = [], SQUARE.to_unit(SQUARE.sobol(12)).double()
    for f in FUNCTIONS.values():
        energy = lambda x, pose: f(pose)
        _, values = quasi_newton(energy, SQUARE, torch.zeros(1, 1, 8, 8, dtype=torch.float64), starts[None], 40)
        grid = f(SQUARE.grid(21).double())
        found.append((values.min().item() - min(by_scipy(f, starts)))/(grid.max() - grid.min()).item())
    return max(found), len(found)

@compare('multistart in one dimension, 40 passes: the excess over a dense scan by NumPy', 1e-3, 'of the range')
def _():
    turn, found = PoseSpace(angle=180), []
    wave = lambda a, k: np.sin(np.deg2rad(a) + k) + 0.5*np.sin(np.deg2rad(3*a) + 2*k) + 0.2*np.cos(np.deg2rad(5*a) - k)
    for k in range(40):
        energy = lambda x, pose: torch.tensor(wave(pose[..., 0].double().numpy(), k))
        dense = wave(np.linspace(-180, 180, 36001), k)
        least = multistart(energy, turn, torch.zeros(1, 1, 8, 8), 40).energy.item()
        found.append((least - dense.min())/(dense.max() - dense.min()))
    return max(found), len(found)

def as_in_2019(energy, x, angles, steps, rate):
    "Adam on the angle in radians, from each start of one image: the energies on the way. Written from the paper."
    seen = []
    for start in angles:
        a, m, v = math.radians(start), 0.0, 0.0
        for t in range(1, steps + 1):
            p = torch.tensor([[[math.degrees(a)]]], requires_grad=True)
            value = energy(x, p)[0, 0]
            g = torch.autograd.grad(value, p)[0].item()*180/math.pi
            seen.append(value.item())
            m, v = 0.9*m + 0.1*g, 0.999*v + 0.001*g*g
            a -= rate*(m/(1 - 0.9**t))/(math.sqrt(v/(1 - 0.999**t)) + 1e-12)
    return torch.tensor(seen).view(len(angles), steps).T.flatten()

@compare('the search of 2019, every energy on its way: Adam by hand, image by image', 0.02, 'nats of some 90')
def _():
    (vae, x), turn = nonlinear_vae(), PoseSpace(angle=180)
    model = AffineVAE(vae, turn)
    ours = random_restarts(model.energy, turn, x, starts=4, steps=12)
    starts = turn.sample(4, 0)[:, 0].tolist()
    theirs = (as_in_2019(model.energy, one[None], starts, 12, 2*math.pi/628) for one in x)
    return largest(zip(ours.energies[:, 1:], theirs))

@pytest.mark.parametrize('name', COMPARED)
def test_numbers_agree(name):
    function, limit, _ = COMPARED[name]
    difference, n = function()
    assert n and difference <= limit, f'{name}: {difference:.3g} > {limit}'

def table():
    "A row for each comparison."
    for name, (function, limit, unit) in COMPARED.items():
        difference, n = function()
        yield dict(what=name, difference=difference, limit=limit, unit=unit, cases=n)

if __name__ == '__main__':
    from avae.core import write_json
    import kornia, scipy, torchvision
    versions = {m.__name__: m.__version__ for m in (torch, torchvision, kornia, scipy, np)}
    write_json(sys.argv[1], dict(versions=versions, rows=list(table())))
    for row in json.loads(Path(sys.argv[1]).read_text())['rows']: print(f"{row['difference']:10.2g}  {row['what']}")
