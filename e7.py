import torch
from avae.training import _settings, _command if False else _settings
