"""Search for the noise of a prompt: exploration, optimization by reward gradients, CARINOX."""

from align.noise_opt.records import OptimizeStep as OptimizeStep
from align.noise_opt.search import optimize as optimize
