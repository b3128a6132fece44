"""Fits of scaling laws: approaches 1, 2 and 3 of Hoffmann et al. 2022 (arXiv 2203.15556)."""

from flopcount.fitting.columns import FlaggedRow
from flopcount.fitting.curves import Curves, CurvesFit, fit_training_curves, read_curves
from flopcount.fitting.frontier import Frontier
from flopcount.fitting.optima import OptimaFit, fit_optima
from flopcount.fitting.profiles import (
    Bias,
    Profile,
    ProfilesFit,
    approach_2_bias,
    fit_isoflop_profiles,
)
from flopcount.fitting.results import Interval, Optimum
from flopcount.fitting.runs import Runs, read_runs
from flopcount.fitting.surface import SurfaceFit, fit_surface

__all__ = [
    "Bias",
    "Curves",
    "CurvesFit",
    "FlaggedRow",
    "Frontier",
    "Interval",
    "OptimaFit",
    "Optimum",
    "Profile",
    "ProfilesFit",
    "Runs",
    "SurfaceFit",
    "approach_2_bias",
    "fit_isoflop_profiles",
    "fit_optima",
    "fit_surface",
    "fit_training_curves",
    "read_curves",
    "read_runs",
]
