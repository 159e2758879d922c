"""Parameterizations: *what* the network's output means. One file each."""

from hdlm.parameterization.base import AbstractParameterization, NetworkInputs
from hdlm.parameterization.log_score import LogScore
from hdlm.parameterization.mean import Mean
from hdlm.parameterization.shifted import Shifted

__all__ = ["AbstractParameterization", "LogScore", "Mean", "NetworkInputs", "Shifted"]
