"""A program of a user, for `mypy tests/typed.py`: the public names say what they take and give. It is not run."""
from pathlib import Path
import torch
from torch import Tensor, nn
from avae import (VAE, AffineVAE, Bernoulli, Gaussian, ImageDir, PoseSpace, fit_guess, invert, load_dataset,
                  load_pretrained, mnist_sample, multistart, random_restarts, random_views, scan, split_valid, toy_glyphs,
                  train, transform_boxes, transform_masks, transform_points, warp)
from avae.affine_vae import AffineVAEOutput
from avae.canonicalize import canonicalize
from avae.inference import Posterior, elbo, iw_bound, posterior, second_mode
from avae.models import VAEOutput
from avae.optimizers import SearchResult

def images() -> Tensor:
    digits: Tensor = mnist_sample().images
    letters: Tensor = toy_glyphs(20)
    labels: Tensor | None = load_dataset("mnist", "train").labels
    print(labels is None, letters.shape)
    return digits

def geometry(x: Tensor) -> Tensor:
    poses = PoseSpace(angle=180, scale=(0.5, 2.0), shear=0.3, shift=0.1, flip=True)
    names: tuple[str, ...] = tuple(poses.names)
    pose: Tensor = poses.sample(len(x), seed=1)
    mat: Tensor = poses.mat(pose, (28, 28))
    back: Tensor = poses.from_mat(invert(mat), (28, 28))
    views, true = random_views(x, poses, seed=2)
    print(names, back.shape, true.shape)
    moved: Tensor = warp(views, mat, fill=0.5, mode="bicubic")
    return moved

def model(x: Tensor, run: Path) -> AffineVAEOutput:
    vae = VAE(latent=8, size=28, likelihood=Gaussian(0.1))
    train_on, valid = split_valid(x, 10)
    history = train(vae, train_on, valid, PoseSpace(angle=180), run, epochs=2, device="cpu")
    last: float = history[-1].valid
    plain: VAEOutput = vae.eval()(x)
    avae = AffineVAE(vae, PoseSpace(angle=180), search=multistart, budget=26, likelihood=Bernoulli())
    avae.save_pretrained(run/"model")
    again: nn.Module = load_pretrained(run/"model")
    out: AffineVAEOutput = avae(x, 30)
    loss: Tensor = out.loss
    print(last, plain.nll.mean(), again, loss)
    return out

def inference(avae: AffineVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    found: SearchResult = avae.search(x, 26)
    one: SearchResult = scan(avae.energy, avae.poses, x, budget=90)
    two: SearchResult = random_restarts(avae.energy, avae.poses, x, starts=3, steps=5)
    post: Posterior = posterior(avae, x, draws=64)
    other, above = second_mode(found, avae.poses)
    print(one.passes, two.passes, post.moved(), other, above)
    low: Tensor = elbo(avae, x, samples=8)
    high: Tensor = iw_bound(avae, x, samples=100, seed=1)
    return low, high

def files(folder: Path, avae: AffineVAE) -> None:
    data = ImageDir(folder, 28)
    image, label = data[0]
    guess = fit_guess(avae, torch.stack([image]))
    print(len(data), label + 1, guess, canonicalize(folder, avae, folder/"out"))

def annotations(mat: Tensor) -> None:
    print(transform_points(torch.zeros(1, 5, 2), mat), transform_boxes(torch.zeros(1, 5, 4), mat),
          transform_masks(torch.zeros(1, 1, 28, 28), mat))
