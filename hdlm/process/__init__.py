"""Noise processes: *how* a token is noised. One file each; a process is three weights of the noise fraction."""

from hdlm.process.absorbing import Absorbing
from hdlm.process.base import AbstractNoiseProcess, Kernel, Rates, Reverse, Weights
from hdlm.process.epsilon_hybrid import EpsilonHybrid
from hdlm.process.gamma_hybrid import GammaHybrid
from hdlm.process.gidd import GIDD
from hdlm.process.uniform import Uniform

__all__ = [
    "GIDD",
    "Absorbing",
    "AbstractNoiseProcess",
    "EpsilonHybrid",
    "GammaHybrid",
    "Kernel",
    "Rates",
    "Reverse",
    "Uniform",
    "Weights",
]
