"""Laws, one file for each kind of object; a law is a function whose docstring states it."""

from hdlm.verification.laws.denoisers import DENOISER_LAWS
from hdlm.verification.laws.hyperschedules import HYPERSCHEDULE_LAWS
from hdlm.verification.laws.noise_schedules import NOISE_SCHEDULE_LAWS
from hdlm.verification.laws.objectives import OBJECTIVE_LAWS, PROCESS_BOUND_LAWS
from hdlm.verification.laws.parameterizations import PARAMETERIZATION_LAWS
from hdlm.verification.laws.processes import PROCESS_LAWS
from hdlm.verification.laws.samplers import PROCESS_SAMPLING_LAWS, SAMPLER_LAWS, Sampler

__all__ = [
    "DENOISER_LAWS",
    "HYPERSCHEDULE_LAWS",
    "NOISE_SCHEDULE_LAWS",
    "OBJECTIVE_LAWS",
    "PARAMETERIZATION_LAWS",
    "PROCESS_BOUND_LAWS",
    "PROCESS_LAWS",
    "PROCESS_SAMPLING_LAWS",
    "SAMPLER_LAWS",
    "Sampler",
]
