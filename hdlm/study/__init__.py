"""Studies: arms, seeds and budgets from one file, trained and measured as a graph of jobs that can be resumed.

plan      the file, and the jobs that it describes
budget    tokens and FLOPs of a run, and the number of steps for a budget
jobs      one job: it writes into its own folder, and a finished job is not repeated
run       all jobs of a study, or one part of them, and the results
results   means over seeds with errors between and within seeds
"""

from hdlm.study.plan import Study
from hdlm.study.run import StudyRun, StudyStoppedError

__all__ = ["Study", "StudyRun", "StudyStoppedError"]
