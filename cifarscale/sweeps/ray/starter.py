"""`ray start` with more patience: `python -m cifarscale.sweeps.ray.starter OPTION…`. Importing this loads Ray.

Ray gives a node 30 s to become known to its head, a number in the middle of its code. A node takes longer on busy cores
or a slow file server, as it starts several Pythons first; so the question whether it is known is asked patiently. And
`ray start` waits for the server of its dashboard, which it starts even where one wants none; here it does not.
"""

import sys
import time
from typing import Any

from ray._private import services
from ray.scripts.scripts import main

PATIENCE_S = 90
"""A node that is not known then never will be: the next start of Ray, of which there are several, may succeed."""
_POLL_S = 0.2
_get_node = services.get_node


def _get_node_patiently(*arguments: Any, **options: Any) -> Any:
    """Ray's own function, asked again while it does not know the node. Raises: RuntimeError after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return _get_node(*arguments, **options)  # type: ignore[no-untyped-call]
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


def _no_api_server(*arguments: Any, **options: Any) -> tuple[str, None]:
    return "", None


if __name__ == "__main__":
    services.get_node, services.start_api_server = _get_node_patiently, _no_api_server
    sys.argv = ["ray", "start", *sys.argv[1:]]
    main()  # type: ignore[no-untyped-call]
