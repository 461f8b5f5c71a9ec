"""How runs of GANs are shown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cifarscale.tasks.generator_view import GeneratorView

if TYPE_CHECKING:
    from cifarscale.tracking.charts import Chart


class GanView(GeneratorView):
    def charts(self) -> "Sequence[Chart]":
        from cifarscale.tracking.charts import Chart

        losses = {"discriminator_loss": "discriminator", "generator_loss": "generator"}
        return Chart("Loss", losses, "loss"), *super().charts()

    def compared(self) -> "Sequence[Chart]":
        from cifarscale.tracking.charts import Chart

        return Chart("Generator's loss", {"generator_loss": ""}, "loss"), *super().compared()
