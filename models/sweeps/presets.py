"""Sweeps by name, and the figures that their settings were chosen by.

The demo's learning rate. The article's 2e-4 is for models a thousand times larger, so the demo has
its own peak, tuned once: validation loss at 3e11 FLOPs, seed 0, by channels (two layers)::

    learning rate      8      16      24      32      48
            0.005      –  2.1042  2.1511  2.1475  2.2667
            0.01  2.3459  2.0192  2.0233  2.0495  2.2240
            0.02  2.3255  2.0516  2.0243  2.1301  2.2555
            0.03  2.3447  2.0459  2.0551  2.2584  2.2836

0.01 is the best or within 0.021 of it at every size. Regenerate a row, here the first, with::

    python -m models sweep runs/rate-0.005 demo --budgets 3e11 --recipe.learning-rate 0.005

The demo's minimum. Validation loss with seeds 0, 1, 2::

    channels          8      12      16      24      32      48
    2e11 FLOPs   2.4131  2.1804  2.0614  2.1147  2.1943  2.3454
                      –  2.1772  2.0862  2.1195  2.1840  2.2917
                      –  2.1647  2.1103  2.1481  2.1649  2.3849
    4e11 FLOPs   2.3577  2.0947  1.9733  1.9643  1.9851  2.0948
                      –  2.0757  1.9965  1.8825  1.9794  2.0706
                      –  2.0859  2.0063  1.9417  1.9957  2.1278

With every seed the least loss is at 16 channels on the smaller budget and at 24 on the larger.
Seeds scatter by 0.025 (standard deviation pooled over the ten shapes with three seeds); the edges
lie 0.13 to 0.39 above the minimum. Neighbours of the minimum are not always told apart by one seed.
Regenerate with::

    python -m models sweep runs/seeds demo --seeds 0 1 2

(CPython 3.11.7's standard library, torch 2.13.0 on x86-64; other versions have other text.)
"""

from models.sweeps.plan import SweepConfig
from models.training.run import ModelConfig, Recipe

DEMO = SweepConfig(
    budgets=(2e11, 4e11),
    shapes=((8, 2), (12, 2), (16, 2), (24, 2), (32, 2), (48, 2)),
    model=ModelConfig(num_latents=128, num_prefix=128, num_heads=2),
    recipe=Recipe(batch_size=4, learning_rate=1e-2),
    validations=10,
    device="cpu",
)
"""Two budgets, six sizes from 6e3 to 8e4 parameters, minutes on two cores."""
