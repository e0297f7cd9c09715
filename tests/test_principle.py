"Promise 8: an image without an object prefers no pose, under a decoder that has learned nothing, little or much."
import pytest
import torch
from avae.affine import PoseSpace, random_views
from avae.data import toy_glyphs
from avae.affine_vae import AffineVAE
from avae.models import VAE
from avae.training import train

TURN, SHIFT, SCALE = PoseSpace(angle=180), PoseSpace(angle=180, shift=0.2), PoseSpace(angle=180, scale=1.3)
BACKGROUNDS = dict(black=(0, 0), grey=(0.4, 0), light=(0.9, 0), noisy=(0.4, 0.08))  # level, noise

def plain(background, n, g):
    level, noise = BACKGROUNDS[background]
    return (level + noise*torch.randn(n, 1, 24, 24, generator=g)).clamp(0, 1)

def energies(model, images):
    "Of each image under 64 poses: (N, 64)."
    some = torch.cat([model.poses.identity(), model.poses.sobol(63)]).to(images).expand(len(images), -1, -1)
    with torch.no_grad(): return model.eval().energy(images, some)

def spread(e):
    "By how many nats the worst of 64 poses is above the best, on average over images."
    return (e.amax(1) - e.amin(1)).mean().item()

def share(e):
    "The same in parts of the loss."
    return ((e.amax(1) - e.amin(1))/e.mean(1)).mean().item()

@pytest.mark.parametrize('poses', [TURN, SHIFT, SCALE], ids=['rotation', 'shift', 'scale'])
@pytest.mark.parametrize('background', BACKGROUNDS)
def test_an_untrained_decoder_prefers_no_pose(background, poses):
    torch.manual_seed(0)
    vae, empty = VAE(2, 24).eval(), plain(background, 8, torch.Generator().manual_seed(0))
    assert share(energies(AffineVAE(vae, poses), empty)) < 1e-3
    assert share(energies(AffineVAE(vae, poses, mask=None), empty)) > 0.1  # the corners, filled with 0, decide

def learned(background, poses, blank):
    """Energies of empty images, and of some letters, after little and after much training on letters in random poses, and on
    so many images without one."""
    g = torch.Generator().manual_seed(0)
    letters, _ = random_views(toy_glyphs(48, 24, 1), poses, 1)
    letters = torch.lerp(plain(background, 48, g), torch.tensor(float(background != 'light')), letters)
    images, empty = torch.cat([letters, plain(background, blank, g)]), plain(background, 8, g)
    torch.manual_seed(0)
    model = AffineVAE(VAE(2, 24), poses)
    for epochs in (2, 8):
        train(model, images, epochs=epochs, align=40, batch_size=16, lr=5e-3, device='cpu')
        yield energies(model, empty), energies(model, letters[:8])

@pytest.mark.parametrize('background', BACKGROUNDS)
def test_a_decoder_that_learns_prefers_no_angle(background):
    assert all(share(empty) < 0.04 for empty, _ in learned(background, TURN, 0))

@pytest.mark.parametrize('poses', [SHIFT, SCALE], ids=['shift', 'scale'])
@pytest.mark.parametrize('background', BACKGROUNDS)
def test_a_decoder_that_knows_empty_images_prefers_no_pose(background, poses):
    """One that has seen none imagines an object in them, and a small one costs less than a large one. What a pose is worth to
    an empty image, in parts of what it is worth to a letter: after little training a half at most, after much little."""
    found = list(learned(background, poses, 16))
    little, much = [spread(empty)/spread(letters) for empty, letters in found]
    assert little < 0.6 and much < 0.1
    if background == 'grey': assert all(share(empty) < 0.02 for empty, _ in found)
