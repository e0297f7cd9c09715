#!/usr/bin/env python
"""Others beside the AVAE, on the same images, for the same CPU time of one thread.

    python tools/peers.py --data DATA

Makes an environment of its own for the others (`runs/beside_others/env`), runs each of `PLAN` in a process of its own,
and gathers the numbers in `nbs/results/beside_others.json`, which `46_beside_others` shows. What the results
file holds is not run again, unless `--fresh` says so: all of it takes some 23 hours of one core, goes on with the
same command, without `--fresh`, and `--cores` runs several at a time. DATA holds MNIST and Fashion-MNIST, as torchvision
lays them out.
"""
import argparse, json, math, os, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT/"runs"/"beside_others", ROOT/"nbs"/"results"/"beside_others.json"
ENV = RUNS/"env"
PEERS = ["atomai==0.8.1", "six", "pyroved==0.3.0", "equiadapt==0.1.2", "pythae==0.1.2"]  # atomai does not name six
MODELS = ["avae", "augmented", "pyroved", "atomai", "equiadapt", "pythae", "upright"]
SETS = ["mnist", "fashion_mnist"]
SHORT, LONG = 240, 1800  # CPU seconds of training
EPOCHS = {("avae", SHORT): 11, ("augmented", SHORT): 50, ("upright", SHORT): 50, ("avae", LONG): 100, ("augmented", LONG): 380}
# epochs that fill this time: these plan their learning rate ahead
N, OTHERS, SIZE = 10_000, 2_000, 40
PLAN = [(m, d, latent, s, SHORT) for latent in (2, 8) for s in range(3) for d in SETS for m in MODELS]
ANGLES = ["avae", "pyroved", "atomai", "equiadapt"]  # those that know of them
PLAN += [(m, d, 2, s, LONG) for d in SETS for s in range(3) for m in ANGLES] + [(m, d, 8, 0, LONG) for d in SETS for m in ANGLES]
PLAN += [(m, d, 2, 0, LONG) for d in SETS for m in ("augmented", "pythae")]

class Over(Exception):
    "The time is over."

class Clock:
    "CPU seconds of this process, and images learned from."
    def __init__(self, limit): self.limit, self.images, self.begin = limit, 0, time.process_time()

    def seconds(self): return time.process_time() - self.begin

    def tick(self, n):
        self.images += n
        if self.seconds() > self.limit: raise Over

# Each model is a function of the images, (N, 1, H, W), which learns from them until the clock says stop. It returns two
# functions of images: their codes and angles in degrees (None if it knows of none), and their reconstructions. A third, if
# there is one, makes other pairs of such functions out of the same model, by name.

def avae(x, latent, seed, clock):
    "AffineVAE around the default VAE, angles of a full circle, trained with the defaults."
    from avae import VAE, AffineVAE, PoseSpace, train
    model, epochs = AffineVAE(VAE(latent=latent), PoseSpace(angle=180)), EPOCHS["avae", clock.limit]
    train(model, x, epochs=epochs, seed=seed, device="cpu")
    clock.images = epochs*len(x)
    return *functions(model), lambda: guessing(model, x)

def functions(explain):
    "Codes and angles, and reconstructions, by a function that finds poses."
    def encode(x):
        out = explain(x)
        return out.mu, out.pose[:, 0]
    return encode, lambda x: explain(x).recon

def guessing(model, x):
    "The same AVAE with a guess, learned from the poses it has found: by passes that follow the guess."
    from avae import AffineVAE, fit_guess
    guess = fit_guess(model, x, in_batches(lambda b: model(b).pose, x), device="cpu")
    quick = AffineVAE(model.vae, model.poses, guess=guess)
    alone = lambda b: quick(b, pose=guess.propose(guess(b, quick.background(b)), 1)[0][:, 0])
    return {0: functions(alone)} | {n: functions(lambda b, n=n: quick(b, guess.passes + n)) for n in (4, 8)}

def plain(x, latent, seed, epochs, clock, augment=None):
    "The same VAE without a search."
    from avae import VAE, train
    model = VAE(latent=latent)
    train(model, x, augment=augment, epochs=epochs, seed=seed, device="cpu")
    clock.images = epochs*len(x)
    return lambda x: (model.encode(x)[0], None), lambda x: model(x).recon

def augmented(x, latent, seed, clock):
    "The same VAE without a search; each image is turned by another angle in every epoch."
    from avae import PoseSpace
    return plain(x, latent, seed, EPOCHS["augmented", clock.limit], clock, PoseSpace(angle=180))

def upright(x, latent, seed, clock):
    "The ceiling: the same VAE without a search, for which no image was turned."
    return plain(x, latent, seed, EPOCHS["upright", clock.limit], clock)

def pyroved(x, latent, seed, clock):
    "pyroVED's iVAE with invariance to rotation, its defaults: MLPs of 2 x 128, a decoder of coordinates, Bernoulli."
    from pyroved.models import iVAE
    from pyroved.trainers import SVItrainer
    from pyroved.utils import init_dataloader, transform_coordinates
    model = iVAE(tuple(x.shape[2:]), latent_dim=latent, invariances=["r"], seed=seed)
    loader, trainer = init_dataloader(x[:, 0]), SVItrainer(model, seed=seed)
    class Timed:
        dataset = loader.dataset
        def __iter__(self):
            for batch in loader:
                yield batch
                clock.tick(len(batch[0]))
    try:
        while True: trainer.step(Timed())
    except Over: model.eval()
    def encode(x):
        mean, _ = model.encode(x[:, 0])
        return mean[:, 1:], mean[:, 0].rad2deg()
    def reconstruct(x):  # its own `decode` takes one angle for all images
        mean, _ = model.encode(x[:, 0])
        grid = model.grid.expand(len(x), *model.grid.shape)
        grid = transform_coordinates(grid, mean[:, 0], torch.zeros(()), torch.ones(()))
        return model.decoder(grid, mean[:, 1:]).view(x.shape)
    return encode, reconstruct

def atomai(x, latent, seed, clock):
    "AtomAI's rVAE without shifts, its defaults but for cross-entropy and a prior of half a turn: as pyroVED's, batches of 32."
    import numpy as np
    np.product = np.prod  # atomai 0.8.1 calls it by the name that NumPy 2 has dropped
    from atomai.models import rVAE
    from atomai.utils import transform_coordinates
    model = rVAE(tuple(x.shape[2:]), latent_dim=latent, translation=False, seed=seed)
    step = model.forward_compute_elbo
    def timed(batch, *rest, **named):
        loss = step(batch, *rest, **named)
        clock.tick(len(batch))
        return loss
    model.forward_compute_elbo = timed
    with tempfile.TemporaryDirectory() as folder:
        try: model.fit(x[:, 0].numpy(), training_cycles=10**6, loss="ce", rotation_prior=math.pi, filename=f"{folder}/model")
        except Over: pass
    for net in (model.encoder_net, model.decoder_net): net.eval()
    def encode(x):
        mean = torch.tensor(model.encode(x[:, 0].numpy())[0])
        return mean[:, 1:], mean[:, 0].rad2deg()
    def reconstruct(x):  # its own `decode` takes no angle
        mean = torch.tensor(model.encode(x[:, 0].numpy())[0])
        grid = transform_coordinates(model.x_coord.expand(len(x), *model.x_coord.shape), mean[:, 0])
        return model.decoder_net(grid, mean[:, 1:]).sigmoid().view(x.shape)
    return encode, reconstruct

def equiadapt(x, latent, seed, clock):
    """equiadapt's optimised canonicalisation, 16 rotations, kernels of 5 (7 fail at this size), around the same VAE; both are
    learned together by the ELBO, with the weight of the canonicaliser's own loss that its example takes."""
    from equiadapt import ConvNetwork, OptimizedGroupEquivariantImageCanonicalization
    from omegaconf import OmegaConf
    from torch.utils.data import DataLoader, TensorDataset
    from avae import VAE
    shape = tuple(x.shape[1:])
    options = OmegaConf.create(dict(input_crop_ratio=1.0, resize_shape=shape[-1], beta=1.0, group_type="rotation",
                                    num_rotations=16, learn_ref_vec=False, artifact_err_wt=0))
    canonicaliser = OptimizedGroupEquivariantImageCanonicalization(ConvNetwork(shape, 16, 5, 3, 128), options, shape)
    vae = VAE(latent=latent)
    optimizer = torch.optim.Adam([*canonicaliser.parameters(), *vae.parameters()], lr=1e-3)
    def turned_back(decoded): return canonicaliser.invert_canonicalization(decoded, induced_rep_type="scalar").clamp(0, 1)
    canonicaliser.train(), vae.train()
    try:
        while True:
            for batch, in DataLoader(TensorDataset(x), batch_size=128, shuffle=True):
                mu, logvar = vae.encode(canonicaliser(batch).clamp(0, 1))
                recon = turned_back(vae.decode(vae.reparameterize(mu, logvar)))
                loss = (vae.likelihood.nll(batch, recon) + vae.prior.kl(mu, logvar)).mean()/batch[0].numel()
                optimizer.zero_grad()
                (loss + 2e-4*canonicaliser.get_optimization_specific_loss()).backward()
                optimizer.step()
                clock.tick(len(batch))
    except Over: canonicaliser.eval(), vae.eval()
    def encode(x):
        mu, _ = vae.encode(canonicaliser(x).clamp(0, 1))
        return mu, canonicaliser.canonicalization_info_dict["group_element"]["rotation"]
    return encode, lambda x: turned_back(vae.decode(encode(x)[0]))

def pythae(x, latent, seed, clock):
    "pythae's VAE, its defaults but for cross-entropy: an MLP of 512, which knows of no poses."
    from pythae.models import VAE, VAEConfig
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback
    class Timed(TrainingCallback):
        def on_train_step_end(self, training_config, **rest): clock.tick(training_config.per_device_train_batch_size)
    model = VAE(VAEConfig(input_dim=tuple(x.shape[1:]), latent_dim=latent, reconstruction_loss="bce"))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(output_dir=folder, num_epochs=10**6, no_cuda=True, seed=seed)
        try: TrainingPipeline(model=model, training_config=config)(train_data=x, callbacks=[Timed()])
        except Over: model.eval()
    def encode(x): return model.encoder(x).embedding, None
    return encode, lambda x: model.decoder(encode(x)[0])["reconstruction"].view(x.shape)

def images(name, turned=True):
    "Training images, each turned once, with their classes; and others, turned and upright, with their angles and classes."
    from avae import PoseSpace, random_views
    from avae.data import load_dataset
    turn, train, test = PoseSpace(angle=180), load_dataset(name, "train", SIZE), load_dataset(name, "test", SIZE)
    x, upright = train.images[:N], test.images[:OTHERS]
    if not turned: return x, train.labels[:N], upright, upright, torch.zeros(OTHERS), test.labels[:OTHERS]
    x, _ = random_views(x, turn, seed=1)
    views, angle = random_views(upright, turn, seed=2)
    return x, train.labels[:N], upright, views, angle[:, 0], test.labels[:OTHERS]

def in_batches(f, x):
    "What f gives for 250 images at a time, put together."
    out = [f(b) for b in x.split(250)]
    if not isinstance(out[0], tuple): return torch.cat(out)
    return tuple(None if part[0] is None else torch.cat(part) for part in zip(*out))

def measure(encode, reconstruct, x, labels, upright, views, angle, classes):
    "Numbers of a trained model on images that it has not seen."
    from sklearn.neighbors import KNeighborsClassifier
    from avae import PoseSpace
    from avae.affine import disc
    from avae.evaluation import angle_error
    from avae.memory import agreement
    start = time.process_time()
    codes, found = in_batches(encode, views)
    seconds = time.process_time() - start
    known = in_batches(encode, x[:OTHERS])[0]
    neighbours = KNeighborsClassifier(10).fit(known.numpy(), labels[:OTHERS].numpy()).score(codes.numpy(), classes.numpy())
    mask, p = disc(views.shape[-2:]), in_batches(reconstruct, views).clamp(1e-3, 1 - 1e-3)
    entropy = lambda p: -(mask*(views*p.log() + (1 - views)*(1 - p).log())).flatten(1).sum(1).mean().item()
    out = dict(neighbours=neighbours, cross_entropy=entropy(p), floor=entropy(views.clamp(1e-6, 1 - 1e-6)), encode_ms=1000*seconds/len(views))
    if found is None: return out
    twin = in_batches(encode, upright)[1]
    sign = max((1, -1), key=lambda s: (s*(found - twin) - angle).deg2rad().cos().mean())  # some count clockwise
    estimate = sign*(found - twin)
    error = angle_error(estimate, angle)
    resultant = lambda degrees: torch.polar(torch.ones(len(degrees)), degrees.deg2rad()).mean().abs().item()
    correlation = resultant(estimate - angle) - resultant(estimate + angle)  # of circular variables without a preferred direction
    shares = agreement((angle - sign*found)[:, None], PoseSpace(angle=180), classes)
    shares.pop("all")
    return out | dict(circular_correlation=correlation, median_error=error.median().item(), within_15=(error < 15).float().mean().item(),
                      agreement=sum(shares.values())/len(shares))

def one(model, data, latent, seed, seconds, out):
    "Train and measure one model; called in the environment of the others."
    from avae.core import set_seed, write_json
    torch.set_num_threads(1)
    x, *rest = images(data, turned=model != "upright")
    set_seed(seed)
    clock = Clock(seconds)
    encode, reconstruct, *more = globals()[model](x, latent, seed, clock)
    took = clock.seconds()
    with torch.no_grad(): numbers = measure(encode, reconstruct, x, *rest)
    if more:
        start = time.process_time()
        pairs = more[0]()
        numbers["guess"] = dict(seconds=time.process_time() - start)
        with torch.no_grad(): numbers["guess"] |= {f"{n} passes": measure(*pair, x, *rest) for n, pair in pairs.items()}
    write_json(out, dict(model=model, data=data, latent=latent, seed=seed, limit=seconds, seconds=took,
                         epochs=clock.images/len(x)) | numbers)

def make_env():
    "The environment of the others, once."
    if (ENV/"made").exists(): return
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENV], check=True)
    from importlib.metadata import version
    same = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "torchvision")]
    subprocess.run([ENV/"bin"/"pip", "install", "--quiet", *same, *PEERS, "scikit-learn", "-e", ROOT], check=True)
    (ENV/"made").touch()

def result_of(task): return RUNS/f"{'-'.join(map(str, task))}.json"

def restore():
    "What the results file holds already, as if it had been run here."
    from avae.core import write_json
    for r in json.loads(RESULTS.read_text()) if RESULTS.exists() else []:
        path = result_of([r[k] for k in ("model", "data", "latent", "seed", "limit")])
        if not path.exists(): write_json(path, r)

def run(task, data):
    "One of the plan, unless it is there; what went wrong, if anything."
    path = result_of(task)
    if path.exists(): return
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "AVAE_DATA": str(data)}
    with open(path.with_suffix(".log"), "w") as log:
        done = subprocess.run([ENV/"bin"/"python", __file__, "one", *map(str, task), path], env=env, stdout=log, stderr=log, cwd=RUNS)
    print(*task, "done" if done.returncode == 0 else f"failed: see {os.path.relpath(log.name, ROOT)}", flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", type=Path, default=os.environ.get("AVAE_DATA"), help="folder of the data sets; AVAE_DATA if not given")
    p.add_argument("--cores", type=int, default=1, help="runs at a time")
    p.add_argument("--fresh", action="store_true", help="forget the results file, and run all")
    a = p.parse_args()
    if not a.data: p.error("say where the data sets are: --data, or AVAE_DATA")
    RUNS.mkdir(parents=True, exist_ok=True)
    if a.fresh:
        for path in (RESULTS, *RUNS.glob("*.json")): path.unlink(missing_ok=True)
    restore()
    make_env()
    with ThreadPoolExecutor(a.cores) as pool: list(pool.map(lambda task: run(task, a.data.resolve()), PLAN))
    gather()

def gather():
    "All numbers there are, in one file."
    from avae.core import write_json
    found = [json.loads(path.read_text()) for task in PLAN if (path := result_of(task)).exists()]
    write_json(RESULTS, found)
    print(f"{len(found)} of {len(PLAN)} runs: {RESULTS.relative_to(ROOT)}")

if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        model, data, latent, seed, seconds, out = sys.argv[2:]
        one(model, data, int(latent), int(seed), int(seconds), Path(out))
    else: main()
