"""Parameterizations: *what* the network's output means. One file each."""

from hdlm.parameterization.base import AbstractParameterization, NetworkInputs, NoiseDependence
from hdlm.parameterization.leave_one_out import LeaveOneOut
from hdlm.parameterization.log_score import LogScore
from hdlm.parameterization.mean import Mean
from hdlm.parameterization.shifted import Shifted

__all__ = [
    "AbstractParameterization",
    "LeaveOneOut",
    "LogScore",
    "Mean",
    "NetworkInputs",
    "NoiseDependence",
    "Shifted",
]
