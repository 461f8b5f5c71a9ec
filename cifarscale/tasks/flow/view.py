"""How runs of flow matching are shown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cifarscale.tasks.generator_view import GeneratorView

if TYPE_CHECKING:
    from cifarscale.tracking.charts import Chart


class FlowView(GeneratorView):
    def charts(self) -> "Sequence[Chart]":
        from cifarscale.tracking.charts import Chart

        return Chart("Loss", {"loss": "velocity"}, "squared error"), *super().charts()

    def compared(self) -> "Sequence[Chart]":
        from cifarscale.tracking.charts import Chart

        return Chart("Loss", {"loss": ""}, "squared error of the velocity"), *super().compared()
